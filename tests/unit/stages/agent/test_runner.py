"""Two agents on one topic: each goes at its own pace, each event of each takes effect once (rule 6)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semel import Topic
from semel.memory.faults import Call, Fault, lose_answer, refuse
from semel.plan import AgentKind, AgentPlan, Plan
from tests.unit.harness import APP, Payment, World, dead_letters, truth_of

AUDIT = Topic("audit", key=str, value=dict)


class TwoAgents(World):
    """The usual agent, and one beside it that notes every record, some of them slowly."""

    slow_s = 0.0

    def plan(self) -> Plan:
        plan = super().plan()

        async def audit(payment: Payment) -> dict[str, Any]:
            if self.slow_s and payment.amount % 5 == 0:
                await asyncio.sleep(self.slow_s)
            return {"id": payment.id, "amount": payment.amount}

        beside = AgentPlan("audit", plan.agents[0].sources, AgentKind.COROUTINE, audit, sink=AUDIT)
        return replace(plan, agents=[*plan.agents, beside], outputs=[*plan.outputs, AUDIT])

    def check_audit(self) -> None:
        for p in range(self.partitions):
            wanted = [r.value for r in self.cluster.committed("payments")[p] if r.value != b"not json"]
            found = self.cluster.committed("audit")[p]
            assert len(found) == len(wanted), f"audit[{p}] has {len(found)}, not {len(wanted)}"

    def settled(self) -> bool:
        """Both agents are behind the last record, and that is committed."""
        for p, records in enumerate(self.cluster.committed("payments")):
            at = self.committed_positions().get(p)
            if records and (at is None or at.topics["payments"].next <= records[-1].offset):
                return False
        return True


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[TwoAgents]:
    world = TwoAgents(tmp_path)
    yield world
    await world.close()


def check(world: TwoAgents) -> None:
    """Outputs of both; counts are of both together, which the oracle does not know."""
    for p in range(world.partitions):
        truth = truth_of(world, p)
        assert len(world.cluster.committed("settlements")[p]) == len(truth.outputs)
    world.check_audit()


@pytest.mark.parametrize("slow_s", [0.0, 0.05])
async def test_two_agents_on_one_topic_do_each_event_once_each(two: TwoAgents, slow_s: float) -> None:
    two.slow_s = slow_s
    two.pay_many(200, trouble=False)
    two.start()
    await two.until(two.settled, within_s=120)
    check(two)


async def test_an_agents_slow_event_keeps_no_other_agents_results_waiting(two: TwoAgents) -> None:
    two.slow_s = 30.0
    worker = two.start(handler_timeout_ms=60_000)
    await two.until_running(worker)
    # The other agent is at the first of them for half a minute.
    two.pay("a1", 5, id="slow")
    for n in range(20):
        two.pay("a1", 1, id=f"beside-{n}")
    await asyncio.sleep(1)
    assert sum(len(log) for log in two.cluster.committed("settlements")) == 21
    assert sum(len(log) for log in two.cluster.committed("audit")) == 0
    await two.until(two.settled, within_s=120)
    check(two)


@pytest.mark.parametrize("store", ["kept", "lost"])
async def test_an_agent_that_is_ahead_stays_ahead_over_a_crash(two: TwoAgents, store: str) -> None:
    two.slow_s = 0.2
    two.pay_many(120, trouble=False)
    worker = two.start(handler_timeout_ms=50)
    await two.until(lambda: any(p.topics["payments"].cursors for p in two.committed_positions().values()))
    ahead = {p: dict(at.topics["payments"].cursors) for p, at in two.committed_positions().items()}
    assert any(cursors.get("settle", 0) > 0 for cursors in ahead.values())
    worker.kill()
    await worker.gone()
    if store == "lost":
        two.lose_store("w1")
    two.start()
    two.pay_many(40, trouble=False)
    await two.until(two.settled, within_s=120)
    check(two)
    # The position is the slower one's, and never goes back.
    for history in two.position_history():
        nexts = [at.topics["payments"].next for at in history]
        assert nexts == sorted(nexts)
        for before, after in itertools.pairwise(history):
            at, then = before.topics["payments"], after.topics["payments"]
            for name, offset in at.cursors.items():
                assert then.cursors.get(name, then.next) >= offset


async def test_two_agents_survive_lost_epochs(two: TwoAgents) -> None:
    two.slow_s = 0.01
    two.start(handler_timeout_ms=50, commit_interval_ms=10)
    for n in range(12):
        two.cluster.faults.add("EndTxn", [refuse(48), lose_answer(after_s=0.02), refuse(22)][n % 3], skip=2)
        two.pay_many(20, trouble=False)
        await asyncio.sleep(0.3)
    await two.until(two.settled, within_s=120)
    check(two)


async def test_of_two_agents_only_the_one_to_blame_for_a_refused_record_loses_its_event(two: TwoAgents) -> None:
    async def dawdle(_: Payment) -> None:
        # The other one comes to the culprit when it is known.
        await asyncio.sleep(0.02)

    two.work.before = dawdle

    def script(call: Call) -> Fault | None:
        if call.api == "Produce":
            batches = call.args["batches"].items()
            if any(tp.topic == "audit" and b'"culprit"' in data for tp, data in batches):
                return refuse(87)
        return None

    two.cluster.faults.script(script)
    for n in range(60):
        two.pay(f"a{n % 7}", n + 1, id="culprit" if n == 31 else None)
    two.start()
    await two.until(two.settled, within_s=120)
    dead = [r for log in two.cluster.committed(f"{APP}.dlq") for r in log]
    assert [reason for _, reason in dead_letters(dead)] == ["refused"]
    # The other agent did it.
    assert sum(len(log) for log in two.cluster.committed("settlements")) == 60
    assert sum(len(log) for log in two.cluster.committed("audit")) == 59
