"""One suite for the in-memory cluster and for real Kafka: what it says must hold on all of them.

In memory a test runs in virtual time. On a real broker its topics, groups and transactional ids have names no other
test has.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from semel.kafka import KafkaBroker
from semel.memory.broker import MemoryBroker
from semel.memory.cluster import ClusterSettings, MemoryCluster
from semel.port import Broker, RpcError
from semel.testing.clock import VirtualClock, VirtualLoop
from tests.contract.rig import PATIENCE_S, Rig

# As `semel.local.properties` has them for real brokers.
SETTINGS = ClusterSettings(group_min_session_timeout_ms=500, transaction_sweep_ms=1000)


class RealTime(asyncio.SelectorEventLoop):
    """The loop of a test against a real broker; `kafka` names the broker's fixture."""

    kafka: str


class Kafka41(RealTime):
    kafka = "kafka"


class Kafka39(RealTime):
    kafka = "kafka39"


# The broker did not handle the call: its coordinators move when it misses a beat to its controller, as on a busy machine.
MOVED_COORDINATOR = frozenset({14, 15, 16})


class PatientBroker:
    """A client of a real broker that asks again where a coordinator is elsewhere, or not there yet."""

    def __init__(self, broker: KafkaBroker) -> None:
        self._broker = broker

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._broker, name)
        if not inspect.iscoroutinefunction(value):
            return value

        async def patient(*args: Any, **named: Any) -> Any:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    return await value(*args, **named)
                except RpcError as error:
                    if error.code not in MOVED_COORDINATOR or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(0.01)

        return patient


# The loop decides how time passes, so each test is run once per loop, and the loop says which broker it is for.
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "memory": VirtualLoop,
    "kafka-4.1": Kafka41,
    "kafka-3.9": Kafka39,
}


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and "kafka-" in item.name:
            item.add_marker(pytest.mark.broker)


@pytest.fixture
async def rig(request: pytest.FixtureRequest, topic_prefix: str) -> AsyncIterator[Rig]:
    loop = asyncio.get_running_loop()
    # On a loop in real time this clock tells the real one.
    clock = VirtualClock(time.time())
    if isinstance(loop, RealTime):
        bootstrap = request.getfixturevalue(loop.kafka).bootstrap
        new_client: Callable[[], Any] = lambda: PatientBroker(KafkaBroker(bootstrap, rpc_timeout_ms=10_000))  # noqa: E731
    else:
        cluster = MemoryCluster(clock, settings=SETTINGS)
        numbers = itertools.count(1)
        new_client = lambda: MemoryBroker(cluster, f"client-{next(numbers)}")  # noqa: E731
    rig = Rig(new_client, clock, topic_prefix)
    yield rig
    await rig.close()


@pytest.fixture
async def broker(rig: Rig) -> Broker:
    return await rig.connect()
