"""A worker that is frozen, replaced under its name and woken: which of the two may go on, and what is a finding."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

import pytest

from semel.chaos.faults import zombie
from semel.chaos.faults.zombie import TAKEN, Zombie
from semel.chaos.fleet import Fleet
from semel.chaos.observed import Observed
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker

KNOWN = "the group no longer knows us (Heartbeat was answered with error 82: FENCED_INSTANCE_ID)\n"
FORGOTTEN = "the group no longer knows us (Heartbeat was answered with error 25: UNKNOWN_MEMBER_ID)\n"
REFUSED = "Metadata was answered with error 29: TOPIC_AUTHORIZATION_FAILED\n"
AGAIN = "generation 7: tasks [0]\n"
BOTH = "w1 was frozen, replaced under its name and woken (fault 1)"


class Process:
    """One of two. `then`: how it ends once both are awake, None where it goes on, and what it has logged until then."""

    name, pid, expected_end, frozen, starts = "w1", 1, True, False, 0
    state_dir = Path("/nowhere/at/all")

    def __init__(self, url: str, *then: tuple[int | None, str]) -> None:
        self.url = url
        self.then = list(then)
        self.exit_code: int | None = None
        self.log = ""
        self.awake = asyncio.Event()
        self.ending: asyncio.Task[None] | None = None
        self.other: Process | None = None
        self.killed = False

    @property
    def running(self) -> bool:
        return self.starts > 0 and self.exit_code is None

    @property
    def log_bytes(self) -> int:
        return len(self.log)

    def log_from(self, offset: int) -> str:
        return self.log[offset:]

    def log_end(self) -> str:
        return self.log

    def twin(self) -> Process:
        assert self.other is not None
        return self.other

    def start(self, *, failpoint: str = "") -> Self:
        self.exit_code, self.expected_end = None, False
        self.starts += 1
        self.log += AGAIN
        code, said = self.then.pop(0) if self.then else (None, "")
        self.ending = asyncio.create_task(self._end(code, said))
        return self

    async def _end(self, code: int | None, said: str) -> None:
        await self.awake.wait()
        self.log += said
        await asyncio.sleep(0.02)
        self.exit_code = code

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        self.awake.set()
        if self.other is not None:
            self.other.awake.set()

    async def kill9(self) -> None:
        if self.running:
            self.exit_code, self.killed = -9, True


class Brokers:
    forgetful, away = False, frozenset[int]()


@pytest.fixture
async def on(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """A run without workers yet; whoever is one of it and runs is seen to hold the only partition."""
    monkeypatch.setattr(zombie, "TERM_S", 0.4)
    monkeypatch.setattr(zombie, "AGAIN_S", 0.01)
    anything: Any = None
    fleet = Fleet(
        plan=anything, broker=anything, cluster=cast("Any", Brokers()), workers=[], spare=[],
        observed=Observed("t", 1), load=anything, compaction=anything, views=anything, say=lambda said: None, goal="60 s",
    )  # fmt: skip
    tasks = [{"partition": 0, "state": "running", "position": {"t": 1}, "lag": 0}]
    document = {"tasks": tasks, "counts": {}, "commits": {"commits": 1}, "throttled": {}}

    async def watch() -> None:
        while True:
            for worker in fleet.everyone:
                if worker.running and not worker.frozen and worker.name in fleet.observed.workers:
                    fleet.observed.heard(worker.name, document, 0.0)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    yield fleet
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


def pair(on: Fleet, woken: tuple[int | None, str], *replacement: tuple[int | None, str]) -> tuple[Process, Process]:
    """The worker of the fleet, and the one that will replace it."""
    first, second = Process("http://first", woken), Process("http://second", *replacement)
    first.other = second
    on.workers.append(cast("ChaosWorker", first))
    on.start(on.workers[0])
    return first, second


async def replaced(on: Fleet) -> Entry:
    fault = Zombie(1, 0.0, overlap=False, hold_s=0.05, variant="replaced while frozen")
    entry = Entry(1, fault.kind, str(fault), "", 0.0)
    on.active.add(1)
    await fault.apply(on, entry)
    on.active.discard(1)
    return entry


async def test_the_woken_one_may_end_and_its_replacement_is_the_worker_from_then_on(on: Fleet) -> None:
    _, second = pair(on, (TAKEN, KNOWN), (None, ""))
    entry = await replaced(on)
    assert (on.findings, on.workers, second.running, entry.bit, entry.note) == ([], [second], True, True, "")
    assert on.starts == 2


async def test_the_woken_one_may_win_where_the_group_has_forgotten_both_and_is_the_worker_from_then_on(
    on: Fleet,
) -> None:
    first, second = pair(on, (None, FORGOTTEN + AGAIN), (TAKEN, ""))
    entry = await replaced(on)
    assert (on.findings, on.workers, first.running) == ([], [first], True)
    assert entry.note == "the frozen one went on, as the group had forgotten both"
    assert on.observed.workers["w1"].url == first.url
    assert on.timeline.phase("w1") in ("starting", "running")
    assert (second.exit_code, second.killed) == (TAKEN, False)


async def test_one_that_was_forgotten_before_it_was_frozen_may_win_as_well(on: Fleet) -> None:
    first, _ = pair(on, (None, AGAIN), (TAKEN, ""))
    first.log += FORGOTTEN
    await replaced(on)
    assert (on.findings, on.workers) == ([], [first])


async def test_the_one_that_won_is_started_again_where_it_ends_unasked_and_that_is_a_finding(on: Fleet) -> None:
    first, _ = pair(on, (None, FORGOTTEN + AGAIN), (TAKEN, ""))
    await replaced(on)
    first.exit_code = TAKEN
    await on.supervise(on.workers[0])
    assert (len(on.findings), first.running, first.starts) == (1, True, 2)


async def test_a_woken_one_that_takes_its_name_from_one_that_the_group_knows_is_a_finding(on: Fleet) -> None:
    first, _ = pair(on, (None, KNOWN + AGAIN), (TAKEN, ""))
    # What was forgotten before its last place in the group is no reason.
    first.log = FORGOTTEN + first.log
    await replaced(on)
    [finding] = on.findings
    assert finding.startswith(f"{BOTH}, and took its name back from a replacement that the group knew")
    assert on.workers == [first]


async def test_where_a_broker_coordinated_from_a_part_of_its_log_the_frozen_one_may_be_the_one_it_knows(
    on: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Brokers, "forgetful", True)
    first, _ = pair(on, (None, ""), (TAKEN, KNOWN))
    await replaced(on)
    assert (on.findings, on.workers, len(on.mended)) == ([], [first], 1)


async def test_that_both_go_on_is_a_finding_and_one_is_ended(on: Fleet) -> None:
    first, second = pair(on, (None, KNOWN), (None, ""))
    await replaced(on)
    [finding] = on.findings
    assert finding == f"a fenced worker writes nothing: {BOTH}, and after 0.4 s both go on"
    assert (first.killed, on.workers, second.running) == (True, [second], True)


async def test_no_time_counts_in_which_something_else_goes_wrong(on: Fleet) -> None:
    first, second = pair(on, (None, KNOWN), (None, ""))
    on.active.add(2)
    judging = asyncio.create_task(replaced(on))
    await asyncio.sleep(0.7)
    assert not judging.done()
    first.exit_code = TAKEN
    await judging
    assert (on.findings, on.workers) == ([], [second])


async def test_that_both_end_for_their_name_is_a_finding_and_one_is_started_again(on: Fleet) -> None:
    _, second = pair(on, (TAKEN, KNOWN), (TAKEN, ""))
    await replaced(on)
    [finding] = on.findings
    assert finding == f"{BOTH}, and both ended with exit code 4"
    assert (on.workers, second.running, second.starts) == ([second], True, 2)


@pytest.mark.parametrize(
    ("woken", "replacement", "goes_on"),
    [((1, KNOWN), (None, ""), 1), ((None, FORGOTTEN), (-11, ""), 0)],
    ids=["the woken one", "its replacement"],
)
async def test_one_that_ends_in_another_way_is_a_finding(
    on: Fleet, woken: tuple[int | None, str], replacement: tuple[int | None, str], goes_on: int
) -> None:
    both = pair(on, woken, replacement, (TAKEN, ""))
    await replaced(on)
    [finding] = on.findings
    assert finding.startswith(f"w1 ended by itself with exit code {woken[0] or replacement[0]}")
    assert (on.workers, both[goes_on].running) == ([both[goes_on]], True)


async def test_one_that_ends_for_want_of_a_right_is_no_finding_and_a_replacement_comes_back_and_has_the_name(
    on: Fleet,
) -> None:
    on.rights_since = float("inf")
    first, second = pair(on, (None, KNOWN), (1, REFUSED), (None, ""))
    judging = asyncio.create_task(replaced(on))
    await asyncio.sleep(0.3)
    assert (judging.done(), second.running, second.starts) == (False, True, 2)
    first.exit_code = TAKEN
    await judging
    assert (on.findings, on.unrightful, on.workers, second.running) == ([], 1, [second], True)
