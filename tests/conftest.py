"""Fixtures of every ring of tests: real brokers, each started when the first test asks for it and stopped at the end.

`SEMEL_TEST_BOOTSTRAP=host:port` lets `kafka` be a broker that runs already, for quick repeats of one test.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from hypothesis import settings

from semel.local import jars
from semel.local.install import install
from semel.local.kafka import LocalKafka
from semel.runtime.budget import available_bytes

# The same tree gets the same verdict in CI; by hand each run searches on, and a failure prints how to get it back.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


# A whole run takes half a gigabyte there, and its brokers some gigabytes of memory beside it.
MEMORY = Path("/dev/shm")
FREE_BYTES, MACHINE_BYTES = 3 << 30, 7 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Temporary folders lie in memory where there is room: half of a run is waiting for a disk otherwise, which syncs what no
    test looks at. `--basetemp` and `PYTEST_DEBUG_TEMPROOT` have the last word."""
    if config.getoption("basetemp") is None and _has_room(MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def _has_room(folder: Path) -> bool:
    writable = folder.is_dir() and os.access(folder, os.W_OK)
    return writable and shutil.disk_usage(folder).free >= FREE_BYTES and available_bytes() >= MACHINE_BYTES


@dataclass(frozen=True)
class RunningKafka:
    """A broker that somebody else started: good for all that does not stop it."""

    bootstrap: str


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka | RunningKafka]:
    """Kafka 4.1, one broker, warm: `.bootstrap`. A test that kills it leaves it running again."""
    if bootstrap := os.environ.get("SEMEL_TEST_BOOTSTRAP"):
        _warm(bootstrap, replicas=1)
        yield RunningKafka(bootstrap)
    else:
        yield from _started(tmp_path_factory.mktemp("kafka41"), jars.NEWEST)


@pytest.fixture(scope="session")
def kafka39(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """Kafka 3.9, one broker, warm."""
    yield from _started(tmp_path_factory.mktemp("kafka39"), "3.9.1")


@pytest.fixture(scope="session")
def kafka_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """Kafka 4.1, three brokers (ids 1 to 3), three replicas, two in sync, warm."""
    yield from _started(tmp_path_factory.mktemp("cluster41"), jars.NEWEST, brokers=3)


@pytest.fixture(params=["kafka", "kafka39"], ids=["4.1", "3.9"])
def any_kafka(request: pytest.FixtureRequest) -> LocalKafka | RunningKafka:
    """The test runs once on each Kafka version."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=jars.VERSIONS)
def kafka_version(request: pytest.FixtureRequest) -> str:
    """The test runs once with each Kafka version, ready to be started."""
    install(request.param)
    return request.param


@pytest.fixture
def own_kafka(tmp_path: Path, kafka_version: str) -> Iterator[Callable[..., LocalKafka]]:
    """Makes clusters of the test's own, once on each version: `own_kafka(brokers=1, ...)`, not started."""
    made: list[LocalKafka] = []

    def make(folder: str = "own", *, brokers: int = 1, properties: dict[str, str] | None = None) -> LocalKafka:
        made.append(LocalKafka(tmp_path / folder, version=kafka_version, brokers=brokers, properties=properties))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop(grace_s=2.0)


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """A name no other test and no other run has: for topics, groups, transactional ids and instances."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"{words[:40].rstrip('-')}-{secrets.token_hex(3)}"


def _started(data_dir: Path, version: str, brokers: int = 1) -> Iterator[LocalKafka]:
    install(version)
    # It keeps what thousands of topics left. With 256 MB that is full at the end, and what comes then times out.
    cluster = LocalKafka(data_dir, version=version, brokers=brokers, heap_mb=768 if brokers == 1 else 256)
    cluster.start()
    try:
        _warm(cluster.bootstrap, replicas=brokers)
        yield cluster
    finally:
        cluster.stop(grace_s=2.0)


def _warm(bootstrap: str, replicas: int) -> None:
    """The first transaction and the first group of a broker create internal topics; no test should pay for it."""
    # pytest-asyncio owns this thread's event loop.
    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(asyncio.run, _first_group_and_transaction(bootstrap, replicas)).result(timeout=60)


async def _first_group_and_transaction(bootstrap: str, replicas: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("warm", num_partitions=1, replication_factor=replicas)])
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id="warm")
    consumer = AIOKafkaConsumer(
        "warm", bootstrap_servers=bootstrap, group_id="warm", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait("warm", b"warm")
            await producer.send_offsets_to_transaction({TopicPartition("warm", 0): 0}, "warm")
        await consumer.start()
        await consumer.getone()
    finally:
        await consumer.stop()
        await producer.stop()
