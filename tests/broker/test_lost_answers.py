"""A request or its answer is lost on the way: nobody knows whether it took effect, and it must not matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from semel.chaos.proxy import Api, Proxy, Side, Trouble
from semel.local import jars, ports
from semel.local.install import install
from semel.local.kafka import LocalKafka
from tests.broker.conftest import MakeLedger
from tests.broker.figures import Figures
from tests.broker.ledger import Ledger
from tests.broker.truth import payments

pytestmark = pytest.mark.broker

KILLED = -9


@dataclass(frozen=True)
class ProxiedKafka:
    """A broker with a second listener that it advertises under the proxy's port."""

    kafka: LocalKafka
    behind: int
    proxy_port: int

    @property
    def bootstrap(self) -> str:
        return self.kafka.bootstrap


@pytest.fixture(scope="module", params=jars.VERSIONS)
def proxied_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedKafka]:
    install(request.param)
    port, controller, behind, advertised = ports.choose(4)
    protocols = "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT"
    properties = {
        "listeners": f"BROKER://127.0.0.1:{port},PROXIED://127.0.0.1:{behind},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"BROKER://127.0.0.1:{port},PROXIED://127.0.0.1:{advertised}",
        "listener.security.protocol.map": protocols,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
    }
    folder: Path = tmp_path_factory.mktemp("proxied")
    kafka = LocalKafka(folder, version=request.param, port=port, properties=properties)
    kafka.start()
    yield ProxiedKafka(kafka, behind, advertised)
    kafka.stop(grace_s=2.0)


@pytest.fixture
async def between(proxied_kafka: ProxiedKafka) -> AsyncIterator[Proxy]:
    async with Proxy(proxied_kafka.proxy_port, proxied_kafka.behind) as running:
        yield running


@pytest.fixture
async def ledger(proxied_kafka: ProxiedKafka, make_ledger: MakeLedger) -> Ledger:
    return await make_ledger(proxied_kafka)


def losing(between: Proxy, api: Api, lost: Side, nth: int = 1) -> Trouble:
    between.troubles.append(Trouble(side=lost, api=api, nth=nth))
    return between.troubles[-1]


async def through(ledger: Ledger, between: Proxy, api: Api, lost: Side, *, nth: int, seed: int) -> None:
    """Lose one exchange under load, and reckon."""
    feeding = ledger.feed_beside(payments(seed, 30_000), per_s=500)
    worker = ledger.worker(bootstrap=f"127.0.0.1:{between.port}").start()
    await ledger.until_done(100)
    rules = [losing(between, api, lost, nth), losing(between, api, lost, 2 * nth + 3)]
    for rule in rules:
        async with asyncio.timeout(30):
            await rule.done.wait()
    assert not feeding.done(), "the load ended before the losses"
    await ledger.settle(worker)
    assert await worker.metric("semel_commit_recoveries") >= 1, worker.log_end()
    assert await worker.stopped() == 0


async def test_an_end_of_transaction_that_never_arrived_is_done_again(ledger: Ledger, between: Proxy) -> None:
    await through(ledger, between, Api.EndTxn, Side.REQUESTS, nth=3, seed=31)


async def test_an_end_of_transaction_that_took_effect_unheard_is_not_done_again(ledger: Ledger, between: Proxy) -> None:
    """The epoch is committed and its overlay is gone: without the catch-up its sums would be lost, or doubled."""
    await through(ledger, between, Api.EndTxn, Side.ANSWERS, nth=3, seed=32)


@pytest.mark.parametrize("proxied_kafka", [jars.NEWEST], indirect=True)
@pytest.mark.parametrize("lost", Side)
@pytest.mark.parametrize(
    "api",
    [Api.AddPartitionsToTxn, Api.AddOffsetsToTxn, Api.Produce, Api.TxnOffsetCommit],
    ids=["AddPartitionsToTxn", "AddOffsetsToTxn", "Produce", "TxnOffsetCommit"],
)
async def test_any_exchange_of_a_commit_may_be_lost(ledger: Ledger, between: Proxy, api: Api, lost: Side) -> None:
    await through(ledger, between, api, lost, nth=2, seed=40 + api)


async def test_the_last_commit_of_all_may_be_lost(ledger: Ledger, between: Proxy, figures: Figures) -> None:
    """Nothing comes after it that would make up for it."""
    worker = ledger.worker(bootstrap=f"127.0.0.1:{between.port}").start()
    for n, lost in enumerate(Side):
        await worker.ready()
        rule = losing(between, Api.EndTxn, lost)
        await ledger.feed(payments(50 + n, 3, redeliver=0))
        async with asyncio.timeout(30):
            await rule.done.wait()
        began = asyncio.get_running_loop().time()
        await ledger.drained()
        figures.record(
            f"EndTxn {lost.name.lower()} lost: until committed, s", asyncio.get_running_loop().time() - began
        )
    await ledger.settle(worker)


async def test_a_new_writer_whose_answer_is_lost_is_taken_again(ledger: Ledger, between: Proxy) -> None:
    rules = [losing(between, Api.InitProducerId, lost) for lost in Side]
    await ledger.feed(payments(60, 500))
    worker = ledger.worker(bootstrap=f"127.0.0.1:{between.port}").start()
    await ledger.settle(worker)
    assert all(rule.done.is_set() for rule in rules)


@pytest.mark.parametrize("proxied_kafka", [jars.NEWEST], indirect=True)
async def test_a_worker_killed_while_it_ends_a_transaction_loses_and_doubles_nothing(
    ledger: Ledger, between: Proxy
) -> None:
    ledger.feed_beside(payments(3, 5_000), per_s=500)
    worker = ledger.worker(bootstrap=f"127.0.0.1:{between.port}").start(failpoint="abort.before_end")
    await ledger.until_done(100)
    # From an EndTxn on nothing gets through: what is open then is ended on the way out.
    cut = losing(between, Api.EndTxn, Side.REQUESTS)
    async with asyncio.timeout(30):
        await cut.done.wait()
    with between.trouble(Trouble()):
        await worker.said("is not committed: UNKNOWN")
        worker.term()
        assert await worker.ended() == KILLED, worker.log_end()
    await ledger.settle(worker.start())
