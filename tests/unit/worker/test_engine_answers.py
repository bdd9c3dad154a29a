"""Whatever a broker answers, or fails to answer, to any request of the commit: the epoch counts once."""

from __future__ import annotations

import pytest

from semel.broker.answers import Answer, answer_of
from semel.memory.faults import Fault, delay, lose_answer, lose_request, refuse, unsent
from semel.port import RpcError
from tests.unit.harness import World

COMMIT = ("AddPartitionsToTxn", "AddOffsetsToTxn", "Produce", "TxnOffsetCommit", "EndTxn")
# What only a refused record brings has tests of its own.
CODES = [c for c in (*range(1, 101), 120, -1) if answer_of(RpcError("Produce", c)) is not Answer.RECORD
         and (answer_of(RpcError("Produce", c)) is not Answer.UNKNOWN or c in (49, 59, -1, 42))]  # fmt: skip
LOSSES = {
    "the request is lost": lose_request(after_s=0.5),
    "the answer is lost": lose_answer(after_s=0.5),
    "the connection is refused": unsent(),
    "the request arrives when its client has given up": delay(there_s=3.0),
    "the answer comes when its client has given up": delay(back_s=3.0),
}


async def survives(world: World, api: str, fault: Fault, *, times: int = 1) -> None:
    world.pay_many(60)
    worker = world.start()
    await world.drained()
    rule = world.cluster.faults.add(api, fault, times=times)
    for _ in range(20):
        world.pay_many(5)
        await world.clock.sleep(0.05)
    await world.drained(within_s=120)
    assert rule.hits == times
    world.check()
    assert not worker.over


@pytest.mark.parametrize("api", COMMIT)
@pytest.mark.parametrize("loss", LOSSES)
async def test_a_lost_request_or_answer_of_the_commit_costs_nothing(world: World, api: str, loss: str) -> None:
    await survives(world, api, LOSSES[loss])


@pytest.mark.parametrize("api", COMMIT)
@pytest.mark.parametrize("applied", [False, True], ids=["without effect", "after taking effect"])
@pytest.mark.parametrize("code", CODES)
async def test_an_error_answered_to_the_commit_costs_nothing(world: World, api: str, code: int, applied: bool) -> None:
    await survives(world, api, refuse(code, applied=applied))


@pytest.mark.parametrize("api", COMMIT)
@pytest.mark.parametrize("loss", ["the request is lost", "the answer is lost"])
async def test_losses_in_a_row_cost_nothing(world: World, api: str, loss: str) -> None:
    await survives(world, api, LOSSES[loss], times=4)


@pytest.mark.parametrize("api", ["InitProducerId", "OffsetFetch", "ListOffsets", "Fetch", "Metadata", "JoinGroup", "SyncGroup",
                                 "Heartbeat", "DescribeConfigs"])  # fmt: skip
@pytest.mark.parametrize("loss", LOSSES)
async def test_a_lost_request_or_answer_of_a_takeover_costs_nothing(world: World, api: str, loss: str) -> None:
    if (api, loss) == ("JoinGroup", "the request arrives when its client has given up"):
        # It would come as another member under the same instance name, and is fatal for the first one (rule 16).
        return
    world.pay_many(60)
    world.cluster.faults.add(api, LOSSES[loss], times=2)
    first = world.start("w1")
    await world.drained(within_s=120)
    world.cluster.faults.add(api, LOSSES[loss], times=2)
    second = world.start("w2")
    world.pay_many(60)
    await world.until_running(first, second, within_s=120)
    world.pay_many(30)
    await world.drained(within_s=120)
    world.check()
