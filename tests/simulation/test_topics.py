"""What others do to topics: the laws hold, and each of those that are looked at on the way can be broken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from semel.memory.faults import throttle
from semel.port import LATEST, TP, Broker
from semel.task.topic_watch import TopicWatch
from semel.testing.clock import run_virtual
from semel.worker import reset
from tests.simulation.choices import Choices
from tests.simulation.storm import THROTTLES_S, Outcome, Storm
from tests.simulation.topics import HEARD_S, Change
from tests.simulation.world import SimulatedWorld, seeded

STOPS = [Change.SOURCE_GROWS, Change.SOURCE_ANEW, Change.LOG_ANEW]
GOES_ON = [Change.SINK_GROWS, Change.LETTERS_GROW, Change.SINK_ANEW, Change.LETTERS_ANEW]


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def changed(folder: Path, change: Change, *, stateful: bool = True, seed: int = 1) -> Outcome:
    """Two workers at work, a change of that kind, more work, and what becomes of it; nothing else goes wrong."""

    async def main() -> Outcome:
        world = SimulatedWorld(
            folder, seed=seed, partitions=2, style="stream", window=timedelta(days=7), real=False, stateful=stateful
        )
        storm = Storm(world, seed, Choices(), crashes=0)
        storm.quiet = storm.odd.quiet = True
        storm.others.share, storm.others.reset_rate = 1.0, 0.0
        storm.names = ["w1", "w2"]
        world.excused = False
        try:
            storm.start_all()
            for _ in range(5):
                world.pay_many(20, trouble=False)
                await world.clock.sleep(1)
            # As a step whose draw fell on it.
            storm.others.do("the change", change, seeded(seed, "change"))
            for _ in range(10):
                await world.clock.sleep(0.5)
                if "payments" in world.cluster.topics():
                    world.pay_many(5, trouble=False)
            if storm.others.stopping:
                await storm.others.way_out()
                storm.quiet = storm.odd.quiet = True
                world.pay_many(20, trouble=False)
            await storm.calm()
            return storm.outcome()
        finally:
            await world.close()

    return run_virtual(main())


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("change", STOPS)
def test_every_worker_stops_and_a_reset_begins_anew(tmp_path: Path, change: Change, seed: int) -> None:
    outcome = changed(tmp_path, change, seed=seed)
    assert [str(v) for v in outcome.violations] == []
    assert outcome.figures["resets"] == 1


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("change", GOES_ON)
def test_the_work_goes_on(tmp_path: Path, change: Change, stateful: bool) -> None:
    outcome = changed(tmp_path, change, stateful=stateful)
    assert [str(v) for v in outcome.violations] == []
    assert outcome.figures["resets"] == 0 and outcome.figures["fault: topics"]


def test_what_is_ending_when_every_worker_stops_has_ended_when_that_life_is_judged(tmp_path: Path) -> None:
    """Seed 9100084: markers come at the next request, and nobody was left to make one."""

    async def main() -> list[str]:
        world = SimulatedWorld(tmp_path, seed=1, partitions=2, style="stream", window=timedelta(days=7), real=False)
        storm = Storm(world, 1, Choices(frozenset()), crashes=0)
        storm.quiet = True
        storm.names = ["w1"]
        delays = cycle([0.0, 2.0])
        world.cluster.faults.marker_delay_s = lambda: next(delays)
        try:
            worker = world.boot("w1")
            world.pay_many(20, trouble=False)
            reached, _ = worker.hold_at("commit.after_end")
            await reached.wait()
            # Nobody starts again.
            storm.others.resetting = True
            worker.kill()
            await storm.others._until_nothing_is_open()
            return [str(v) for v in world.judged_life() if v.law == "no_torn_epoch"]
        finally:
            await world.close()

    assert run_virtual(main()) == []


def test_a_sink_that_is_taken_away_may_be_made_by_a_worker_that_starts_meanwhile(tmp_path: Path) -> None:
    """Seed 9400481: it had as many partitions as the source then, and the sink none of the sizes that were noted."""

    async def main() -> tuple[int, list[str]]:
        world = SimulatedWorld(tmp_path, seed=1, partitions=2, style="stream", window=timedelta(days=7), real=False)
        seed = next(n for n in range(9) if seeded(n, "taken away").choice([0, 1]) == 0)
        storm = Storm(world, seed, Choices(), crashes=0)
        storm.quiet = storm.odd.quiet = True
        storm.names = ["w1"]
        world.excused = False
        try:
            # Made by hand, and later on not as the source is.
            world.cluster.create_topic("settlements", 5)
            world.history.sink_sizes = {5}
            storm.start_all()
            world.pay_many(20, trouble=False)
            await world.until_at_rest("the first events")
            world.loop.call_later(HEARD_S + 1.0, lambda: storm._start("w2"), context=world.cluster.context)
            await storm.others.look_at_what_is_said()
            world.pay_many(20, trouble=False)
            await storm.calm()
            return len(world.cluster.topics()["settlements"].logs), [str(v) for v in storm.outcome().violations]
        finally:
            await world.close()

    assert run_virtual(main()) == (2, [])


def test_a_worker_that_was_told_to_wait_before_all_was_quiet_need_not_say_yet_what_is_gone(tmp_path: Path) -> None:
    """Seed 11002104: it was not to ask for metadata for nine seconds, and the topic was taken away in the fourth."""

    async def main() -> list[str]:
        world = SimulatedWorld(tmp_path, seed=1, partitions=2, style="stream", window=timedelta(days=7), real=False)
        storm = Storm(world, 1, Choices(), crashes=0)
        storm.quiet = storm.odd.quiet = True
        storm.names = ["w1"]
        try:
            storm.start_all()
            world.pay_many(20, trouble=False)
            await world.until_at_rest("the first events")
            longest = max(THROTTLES_S)
            world.cluster.faults.clear()
            world.cluster.faults.script(lambda call: throttle(longest) if call.api == "Metadata" else None)
            await world.clock.sleep(2)
            world.cluster.faults.clear()
            await storm.others.look_at_what_is_said()
            return [str(v) for v in storm.others.broken]
        finally:
            await world.close()

    assert run_virtual(main()) == []


def test_what_ended_a_worker_is_said_before_what_was_left_undone(tmp_path: Path) -> None:
    """Seed 11002627: workers ended at every start, and three events that had no output were all that was printed of it."""

    async def main() -> list[str]:
        world = SimulatedWorld(tmp_path, seed=1, partitions=2, style="stream", window=timedelta(days=7), real=False)
        storm = Storm(world, 1, Choices(), crashes=0)
        try:
            world.pay_many(5, trouble=False)
            world.findings.append("w1#1 ended with TopicChanged")
            return [v.law for v in storm.outcome().violations]
        finally:
            await world.close()

    laws = run_virtual(main())
    assert laws[0] == "no_unexpected_end" and "no_loss" in laws


def test_without_state_it_goes_on_when_the_source_grows(tmp_path: Path) -> None:
    outcome = changed(tmp_path, Change.SOURCE_GROWS, stateful=False)
    assert [str(v) for v in outcome.violations] == []
    assert outcome.figures["resets"] == 0 and outcome.history.partitions > 2


def nobody_compares(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TopicWatch, "_compare", lambda self, found: None)


def nobody_says_what_is_gone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TopicWatch, "missing", lambda self: [])


def a_reset_skips_what_is_there(patch: pytest.MonkeyPatch) -> None:
    async def latest(plan: Any, broker: Broker, partitions: dict[str, int], to: Any) -> dict[TP, int]:
        return await broker.list_offsets([TP(n, p) for n, count in partitions.items() for p in range(count)], LATEST)

    patch.setattr(reset, "_target_offsets", latest)


@pytest.mark.parametrize(
    "law, change, mutate",
    [
        ("recovery_ends", Change.SOURCE_GROWS, nobody_compares),
        ("nothing_is_done_of_a_source_that_is_another", Change.SOURCE_GROWS, nobody_compares),
        ("what_is_so_is_said", Change.SINK_GROWS, nobody_says_what_is_gone),
        ("a_reset_begins_where_it_says", Change.SOURCE_GROWS, a_reset_skips_what_is_there),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_its_law_goes_red_when(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    law: str,
    change: Change,
    mutate: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutate(monkeypatch)
    assert law in {v.law for v in changed(tmp_path, change).violations}
