"""The schedule of faults: a function of its seed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from semel import Dedup, Pipeline, Table, Topic
from semel.chaos.fault import STEPS, Fault, Shape
from semel.chaos.faults import FAULTS
from semel.chaos.faults.brokers import growing
from semel.chaos.faults.limits import Deny, Throttle
from semel.chaos.plan import KINDS, possible, schedule, wanted
from semel.chaos.workers import ChaosWorker, Site
from semel.errors import ConfigError
from semel.local.forkserver import ForkServer
from semel.stages.agent import handler_faults

SHAPE = Shape(workers=3, brokers=3, session_s=6.0)


def faults(seed: int, count: int, kinds: tuple[str, ...] = KINDS, shape: Shape = SHAPE) -> list[Fault]:
    return list(islice(schedule(seed, kinds, shape), count))


def test_a_seed_gives_the_same_faults_again() -> None:
    assert faults(7, 200) == faults(7, 200)


def test_another_seed_gives_other_faults() -> None:
    assert faults(7, 20) != faults(8, 20)


def test_each_kind_has_come_once_before_any_comes_twice() -> None:
    assert sorted(fault.kind for fault in faults(3, len(KINDS))) == sorted(KINDS)


def test_only_the_kinds_that_were_asked_for_come() -> None:
    assert {fault.kind for fault in faults(1, 100, ("kill", "zombie"))} == {"kill", "zombie"}


def test_every_step_of_the_protocol_is_killed_at_before_one_is_a_second_time() -> None:
    steps = [fault.step for fault in faults(5, 400, ("failpoint",))]
    assert sorted(steps[: len(STEPS)]) == sorted(STEPS)
    assert set(steps[len(STEPS) : 2 * len(STEPS)]) == set(STEPS)


def test_faults_are_numbered_and_hit_what_is_there() -> None:
    found = faults(11, 500)
    assert [fault.number for fault in found] == list(range(1, 501))
    assert {fault.worker for fault in found} == {-1, 0, 1, 2}
    assert {fault.kind for fault in found if fault.worker == -1} == {"net", "throttle", "odd-code", "down"}
    assert {fault.broker for fault in found} == {0, 1, 2}


def test_a_zombie_mostly_sleeps_past_its_session() -> None:
    zombies = faults(2, 200, ("zombie",))
    long = [z for z in zombies if z.hold_s > SHAPE.session_s]
    assert len(long) > 100
    assert all(z.variant == "SIGSTOP" for z in zombies if z not in long)


def test_every_fault_ends() -> None:
    assert max(fault.hold_s for fault in faults(1, 2000)) < SHAPE.session_s + 4


def test_while_a_long_fault_lasts_the_next_does_not_wait_for_its_end() -> None:
    found = faults(9, 300)
    after_long = [after for before, after in pairwise(found) if before.hold_s > 2]
    assert after_long
    assert all(fault.overlap for fault in after_long)


@pytest.mark.parametrize(
    ("text", "kinds", "count"),
    [
        (None, KINDS, None),
        ("", KINDS, None),
        ("1000", KINDS, 1000),
        ("zombie,kill", ("kill", "zombie"), None),
        ("kill, net ,200", ("kill", "net"), 200),
        ("kill,kill", ("kill",), None),
    ],
)
def test_faults_are_asked_for_by_kind_and_number(text: str | None, kinds: tuple[str, ...], count: int | None) -> None:
    assert wanted(text) == (kinds, count)


@pytest.mark.parametrize("text", ["kil", "0", "-3", "kill,5,7"])
def test_what_is_no_fault_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="there are kill, failpoint, zombie"):
        wanted(text)


def test_what_cannot_happen_here_is_left_out_with_its_reason() -> None:
    kinds, left_out = possible(KINDS, Shape(2, 1, 6.0, mounts=False, stalls=False))
    assert set(KINDS) - set(kinds) == {"leader", "disk-full", "disk-slow"} == set(left_out)
    assert "--brokers 3" in left_out["leader"]
    assert "loop devices" in left_out["disk-slow"]
    assert possible(KINDS, Shape(2, 3, 6.0, mounts=True, stalls=True)) == (KINDS, {})


def test_where_disks_can_be_full_but_not_slow_only_the_slow_ones_are_left_out() -> None:
    kinds, left_out = possible(("disk-full", "disk-slow"), Shape(2, 1, 6.0, mounts=True, stalls=False))
    assert (kinds, list(left_out)) == (("disk-full",), ["disk-slow"])


def test_clocks_jump_in_both_directions_while_workers_run_and_between_two_lives() -> None:
    clocks = faults(4, 200, ("clock",))
    assert {(clock.offset_s > 0, clock.variant.startswith("jumps")) for clock in clocks} == {
        (True, True), (True, False), (False, True), (False, False),
    }  # fmt: skip


def test_the_input_is_compacted_behind_running_workers_and_ahead_of_frozen_and_dead_ones() -> None:
    found = {fault.variant: fault.hold_s for fault in faults(4, 50, ("compact",))}
    assert {variant: hold_s > 0 for variant, hold_s in found.items()} == {
        "while they run": False, "while they are frozen": True, "while they are down": True,
    }  # fmt: skip


def test_a_slow_disk_is_met_by_running_and_by_starting_workers() -> None:
    assert len({fault.variant for fault in faults(4, 50, ("disk-slow",))}) == 2


def test_a_quota_is_of_one_worker_or_of_all_and_of_anything_that_brokers_count() -> None:
    found = faults(4, 100, ("throttle",))
    assert {fault.variant for fault in found} == set(Throttle.variants)
    assert {fault.worker for fault in found} == {-1, 0, 1, 2}
    assert all(fault.overlap for fault in found[1:])


def test_every_right_that_workers_need_is_taken_in_turn_and_given_back() -> None:
    found = faults(4, 200, ("deny",))
    assert {fault.variant for fault in found} == set(Deny.variants)
    assert all(0 < fault.hold_s < SHAPE.session_s for fault in found)


def test_only_what_may_grow_does() -> None:
    shape = Shape(2, 1, 6.0, grows=("the results", "the source"))
    assert {fault.variant for fault in faults(4, 50, ("grow",), shape)} == {"the results", "the source"}


_DEDUP = Dedup("id", window=timedelta(days=1))


async def _agent(stream: Any) -> AsyncIterator[Any]:
    async for event in stream:
        yield event


@pytest.mark.parametrize(
    ("pipeline", "grows"),
    [
        (Pipeline("p", source=Topic("a", value=str), agent=_agent, sink=Topic("b", value=str)),
         ("the results", "the dead letters", "the source")),
        (Pipeline("p", source=Topic("a", value=dict), agent=_agent, sink=Topic("b", value=dict), dedup=_DEDUP),
         ("the results", "the dead letters")),
        (Pipeline("p", source=Topic("a", value=str), agent=_agent, tables=[Table("t", value=int)]), ("the dead letters",)),
    ],
    ids=["nothing kept", "dedup", "a table"],
)  # fmt: skip
def test_a_source_grows_where_nothing_that_is_kept_belongs_to_a_key(pipeline: Pipeline, grows: tuple[str, ...]) -> None:
    assert growing(pipeline.plan()) == grows


def test_code_is_odd_seldom_or_often_in_one_worker_or_in_all() -> None:
    found = faults(4, 100, ("odd-code",))
    assert {fault.nth for fault in found} == {20, 50, 200}
    assert {fault.worker for fault in found} == {-1, 0, 1, 2}


def test_what_a_fault_that_was_interrupted_left_at_a_worker_is_taken_from_it(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    worker = ChaosWorker(Site(ForkServer(), "p", "", tmp_path, {}), "w1", 1)
    clean = left(worker, tmp_path)
    worker.freeze()
    worker.set_clock(5_000)
    handler_faults.order(worker.odd_code, 0.5)
    assert all(now != then for now, then in zip(left(worker, tmp_path), clean, strict=True))
    for fault in FAULTS.values():
        fault.heal(worker)
    assert left(worker, tmp_path) == clean


def left(worker: ChaosWorker, folder: Path) -> tuple[object, ...]:
    return worker.frozen, (folder / "state/w1.clock").read_bytes(), worker.odd_code.read_bytes()
