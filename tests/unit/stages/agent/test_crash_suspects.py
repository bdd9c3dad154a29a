"""Handlers that take the process with them: their event ends in the dead letters, and no other one does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from semel import Dedup, Retry
from semel.codes import Code
from semel.errors import InstanceTaken
from semel.plan import AgentKind, AgentPlan
from semel.port import TP, RpcError, RpcLost
from semel.stages.agent.crash_suspects import LEAST_CRASHES, MOST_HELD_WAIT_S, most_crashes, opened, suspected, wait_s
from semel.state.crash_notes import CODE, HOLDS, SUSPECTS, Held, Left, Suspect
from tests.unit.harness import Payment, Work, Worker, World, given_up, payments_pipeline

# ---------------------------------------------------------------------- the decisions


def events(first: int, last: int | None = None, *, partition: int = 0) -> tuple[str, str, int, int, int, int]:
    return "settle", "payments", partition, first, first if last is None else last, 1_000


def suspect(first: int, last: int | None = None, *, crashes: int = 0, held_s: float = 0.0) -> Suspect:
    return Suspect(*events(first, last), crashes, held_s)


def left(*held: Held, suspects: list[Suspect] | None = None, explained: bool = False, seen: float = 0.0) -> Left:
    return Left("boot", explained, seen, list(held), suspects or [])


def test_a_death_counts_for_an_event_that_was_alone_in_hand() -> None:
    once = suspected(left(Held(events(7), 10.0), seen=12.5), "boot")
    assert once == [suspect(7, crashes=1, held_s=2.5)]
    assert suspected(left(Held(events(7), 30.0), suspects=once, seen=31.0), "boot") == [
        suspect(7, crashes=2, held_s=2.5)
    ]


def test_what_was_in_hand_together_is_only_gone_through_one_by_one() -> None:
    assert suspected(left(Held(events(7, 30), 1.0)), "boot") == [suspect(7, 30)]
    two = left(Held(events(7), 1.0), Held(events(9, partition=1), 1.0), suspects=[suspect(7, crashes=2)])
    found = {s.events: s.crashes for s in suspected(two, "boot")}
    assert found == {events(7): 2, events(9, partition=1): 0}


def test_an_end_that_is_explained_and_one_of_the_machine_blame_nobody() -> None:
    known = [suspect(7, crashes=2)]
    held = Held(events(7), 1.0)
    assert suspected(left(held, suspects=known, explained=True), "boot") == known
    assert suspected(left(held, suspects=known), "another boot") == known


def test_a_death_with_nothing_in_hand_clears_those_that_were_suspect() -> None:
    assert suspected(left(suspects=[suspect(7, crashes=4), suspect(9, 12)]), "boot") == [suspect(7), suspect(9, 12)]


def test_another_event_alone_in_hand_leaves_the_counts_of_others() -> None:
    found = suspected(left(Held(events(9), 1.0), suspects=[suspect(7, crashes=2)]), "boot")
    assert {s.first: s.crashes for s in found} == {7: 2, 9: 1}


def test_suspects_are_bounded_and_those_that_count_stay() -> None:
    known = [suspect(n, n + 1) for n in range(2 * SUSPECTS)] + [suspect(1_000, crashes=2)]
    found = suspected(left(Held(events(1_001), 1.0), suspects=known), "boot")
    assert len(found) == SUSPECTS
    assert [s.first for s in found][-2:] == [1_001, 1_000]


def test_an_event_waits_longer_each_time_and_longer_than_it_was_in_hand() -> None:
    waits = [wait_s(crashes, 0.0) for crashes in range(1, 12)]
    assert waits[:4] == [0.0, 1.0, 2.0, 4.0] and max(waits) == 60.0 and waits == sorted(waits)
    assert wait_s(1, 30.0) == 0.0
    assert wait_s(2, 30.0) == 120.0
    assert wait_s(3, 1e9) == MOST_HELD_WAIT_S
    assert wait_s(10**6, 0.0) == 60.0


def test_fewer_deaths_than_five_are_no_evidence() -> None:
    assert [most_crashes(Retry(attempts=n)) for n in (1, 5, 6)] == [LEAST_CRASHES, 5, 6]


def test_killers_from_outside_do_not_make_an_event_look_guilty() -> None:
    """Thirty kills in a row, each so long after the start, and nothing but one slow event to be done."""
    rng = random.Random(7)
    paces: dict[str, Callable[[], float]] = {
        "at once": lambda: 0.0,
        "each half second": lambda: 0.5,
        "each five seconds": lambda: 5.0,
        "up to five seconds": lambda: rng.uniform(0, 5),
        "half a second on average": lambda: rng.expovariate(2),
        "five seconds on average": lambda: rng.expovariate(1 / 5),
        "a minute on average": lambda: rng.expovariate(1 / 60),
    }

    def is_given_up(takes_s: float, kill_s: Callable[[], float]) -> bool:
        it = suspect(7)
        for _ in range(30):
            if it.crashes >= most_crashes(Retry(attempts=1)):
                return True
            begins, dies = wait_s(it.crashes, it.held_s), kill_s()
            if dies >= begins + takes_s:
                return False
            held = [Held(events(7), begins)] if dies > begins else []
            [it] = suspected(left(*held, suspects=[it], seen=dies), "boot")
        return False

    for takes_s in (0.01, 1.0, 10.0, 60.0):
        for name, kill_s in paces.items():
            condemned = sum(is_given_up(takes_s, kill_s) for _ in range(1_000))
            assert condemned <= 3, (takes_s, name, condemned)


def test_what_the_file_says_is_said_and_taken_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = payments_pipeline(Work()).plan()
    place = tmp_path / "IN_HAND"
    [agent] = plan.agents

    def die(last: int) -> None:
        notes = opened(place, plan)
        notes.note(notes.slots[0], TP("payments", 0), 7, last, 1_000, 1.0)
        notes.slots[0][CODE] = 1

    die(40)
    die(7)
    assert "payments[0]@7 to 40 in hand. They go one by one now" in caplog.text
    caplog.clear()
    notes = opened(place, plan)
    assert (
        f"payments[0]@7 in hand. Alone in hand at 1 death in a row; at {LEAST_CRASHES} it goes to the dead letters"
        in caplog.text
    )
    assert [(s.first, s.last, s.crashes) for s in notes.suspects] == [(7, 40, 0), (7, 7, 1)]
    # Nothing in hand: the counts begin anew. Who is no agent any more is nobody's suspect.
    assert [s.crashes for s in opened(place, plan).suspects] == [0, 0]
    other = replace(plan, agents=[replace(agent, name="other")])
    assert opened(place, other).suspects == []
    # A directory that cannot be written, or garbage in it, stops nobody.
    place.write_bytes(b"\0" * 100)
    assert opened(place, plan).suspects == []
    caplog.clear()
    assert opened(tmp_path / "nowhere" / "IN_HAND", plan).suspects == []
    assert "cannot be noted" in caplog.text


# ---------------------------------------------------------------------- workers


class Supervised:
    """A worker that is started again whenever it has died. `deadly(payment)`: handling it ends the process."""

    def __init__(
        self,
        world: World,
        deadly: Callable[[Payment], bool],
        *,
        restart_s: float = 0.5,
        how: Callable[[Worker], None] = Worker.kill,
    ) -> None:
        self.world = world
        self.deaths: Counter[str] = Counter()
        self._deadly = deadly
        self._how = how
        self._restart_s = restart_s
        self.worker = world.start()
        world.work.before = self._before
        self._again = asyncio.create_task(self._start_again())
        world.others.append(self._again)

    async def _before(self, payment: Payment) -> None:
        if self._deadly(payment) and not self.worker.killed:
            self.deaths[payment.id] += 1
            self._how(self.worker)
            await asyncio.Event().wait()

    async def _start_again(self) -> None:
        while True:
            await asyncio.wait({self.worker.running})
            await self.worker.gone()
            await self.world.clock.sleep(self._restart_s)
            self.worker = self.world.start()

    async def drained(self, within_s: float = 300.0) -> None:
        def holds() -> bool:
            return not self.worker.over and self.world.is_drained()

        ends = self.world.clock.monotonic() + within_s
        while not holds():
            assert self.world.clock.monotonic() < ends, self.world.state()
            await self.world.clock.sleep(0.05)
        self._again.cancel()


STYLES = ["stream", "coroutine", "batches"]


def cancel_what_runs(worker: Worker) -> None:
    """As a handler does that cancels all tasks of the event loop."""
    for task in list(worker.engine._background._tasks):  # pyright: ignore[reportPrivateUsage]
        task.cancel()


def fail_the_engine(worker: Worker) -> None:
    worker.engine.fail(KeyError("a defect that this event meets"))


def end_the_committer(worker: Worker) -> None:
    [commits] = [t for t in worker.engine._background._tasks if t.get_name() == "commits"]  # pyright: ignore[reportPrivateUsage]
    commits.cancel()


@pytest.mark.parametrize("how", [cancel_what_runs, end_the_committer, fail_the_engine])
@pytest.mark.parametrize("style", STYLES)
async def test_an_event_that_ends_the_engine_is_dead_lettered_as_one_that_ends_the_process(
    world: World, style: str, how: Callable[[Worker], None]
) -> None:
    """It ended in good order, which explained it: again at each start, for ever."""
    world.pipeline = payments_pipeline(world.work, style=style)
    for n in range(20):
        world.pay(f"a{n % 8}", 1, id="deadly" if n == 11 else None)
    supervised = Supervised(world, lambda payment: payment.id == "deadly", how=how)
    await supervised.drained()
    assert supervised.deaths["deadly"] in (LEAST_CRASHES, LEAST_CRASHES + 1)
    [(reason, _, attempts)] = given_up(world)
    assert (reason, attempts) == ("failed", LEAST_CRASHES)
    assert len(settled(world)) == len(set(settled(world))) == 19
    world.others.clear()


@pytest.mark.parametrize(
    "ends",
    [
        lambda worker: worker.engine.fail(RpcLost("Fetch", "connection refused", sent=False)),
        lambda worker: worker.engine.fail(RpcError("JoinGroup", Code.REQUEST_TIMED_OUT)),
        lambda worker: worker.engine.fail(InstanceTaken("another w1 runs")),
        lambda worker: worker.engine.stop(),
    ],
)
async def test_an_end_that_an_error_explains_or_that_was_asked_for_counts_for_no_event(
    world: World, ends: Callable[[Worker], None]
) -> None:
    world.pay("a1", 1, id="slow", sleep_ms=2_500)
    for number in range(7):
        worker = world.start()
        await world.until_running(worker)
        while len(world.work.handled) <= number:
            await world.clock.sleep(0.01)
        ends(worker)
        await worker.gone()
        if settled(world):
            break
    worker = world.start()
    await world.drained()
    assert worker.notes.suspects == [] and given_up(world) == [] and settled(world) == ["slow"]


def settled(world: World) -> list[str]:
    return sorted(orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log)


@pytest.mark.parametrize("style", STYLES)
async def test_an_event_that_ends_the_process_is_dead_lettered_and_the_others_take_effect_once(
    world: World, style: str
) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    for n in range(40):
        world.pay(f"a{n % 8}", 1, id="deadly" if n == 11 else None)
    supervised = Supervised(world, lambda payment: payment.id == "deadly")
    await supervised.drained()
    # One more where others were in hand with it.
    assert supervised.deaths["deadly"] in (LEAST_CRASHES, LEAST_CRASHES + 1)
    [(reason, error, attempts)] = given_up(world)
    assert (reason, attempts) == ("failed", LEAST_CRASHES)
    assert error.startswith(f"ProcessEnded: its handler ended the process {LEAST_CRASHES} times in a row")
    assert len(settled(world)) == len(set(settled(world))) == 39
    # A redelivery follows it there, and costs no process.
    died = supervised.deaths.total()
    world.write({"id": "deadly", "account": "a3", "amount": 1}, "a3")
    await world.drained()
    assert supervised.deaths.total() == died
    assert sorted(reason for reason, _, _ in given_up(world)) == ["duplicate", "failed"]
    assert world.workers and not supervised.worker.notes.suspects


async def test_an_agent_that_iterates_in_a_task_of_its_own_has_its_events_in_hand_as_well(world: World) -> None:
    async def settle(payments: Any) -> None:
        async def each() -> None:
            async for payment in payments:
                await world.work.attempt(payment)

        await asyncio.create_task(each())

    plan = world.pipeline.plan()
    plan.agents[:] = [replace(plan.agents[0], kind=AgentKind.STREAM, run=settle)]
    world.plan = lambda: plan  # type: ignore[method-assign]
    for n in range(20):
        world.pay(f"a{n % 8}", 1, id="deadly" if n == 11 else None)
    supervised = Supervised(world, lambda payment: payment.id == "deadly")
    await supervised.drained()
    assert [attempts for _, _, attempts in given_up(world)] == [LEAST_CRASHES]


async def test_several_deadly_events_of_both_partitions_are_all_found(world: World) -> None:
    bad = {"p5", "p6", "p17", "p30", "p31", "p32"}
    for n in range(40):
        world.pay(f"a{n % 8}", 1)
    supervised = Supervised(world, lambda payment: payment.id in bad)
    await supervised.drained(within_s=900)
    assert len(given_up(world)) == len(bad) and settled(world) == sorted({f"p{n}" for n in range(1, 41)} - bad)
    assert max(supervised.deaths.values()) <= LEAST_CRASHES + 2
    world.others.clear()


async def test_other_partitions_go_on_while_a_deadly_event_waits(world: World) -> None:
    supervised = Supervised(world, lambda payment: payment.id == "deadly")
    await world.until_running(supervised.worker)
    world.pay("a1", 1, id="deadly")
    while supervised.deaths["deadly"] < 2:
        await world.clock.sleep(0.05)
    other = next(f"a{n}" for n in range(8) if world.place(f"a{n}") != world.place("a1"))
    before = supervised.deaths.total()
    for _ in range(20):
        world.pay(other, 1)
    while len(settled(world)) < 20:
        await world.clock.sleep(0.01)
    assert supervised.deaths.total() == before
    await supervised.drained()


async def test_a_parked_event_that_ends_the_process_is_found_while_others_are_committed(world: World) -> None:
    """The position is past it all along."""
    world.pay("a1", 1, id="first", fails=2)
    world.pay("a1", 1, id="deadly")
    supervised = Supervised(world, lambda payment: payment.id == "deadly")
    await world.until_running(supervised.worker)

    async def go_on() -> None:
        while not given_up(world):
            world.pay(None, 1)
            await world.clock.sleep(0.1)

    await asyncio.wait_for(go_on(), 120)
    await supervised.drained()
    assert supervised.deaths["deadly"] in (LEAST_CRASHES, LEAST_CRASHES + 1)
    assert [attempts for _, _, attempts in given_up(world)] == [LEAST_CRASHES]
    assert not supervised.worker.notes.suspects
    assert "first" in settled(world) and len(settled(world)) == len(set(settled(world)))


@pytest.mark.parametrize("seed", range(6))
async def test_of_many_slots_whichever_asks_takes_the_suspect(world: World, seed: int) -> None:
    """One in line that had asked for its turn kept all others from taking anything, for good."""
    world.rng.seed(seed)
    world.pipeline = payments_pipeline(world.work, style="coroutine", concurrency=8)
    bad = {f"p{world.rng.randrange(1, 121)}" for _ in range(3)}
    supervised = Supervised(world, lambda payment: payment.id in bad)
    await world.until_running(supervised.worker)
    for n in range(120):
        world.pay(f"a{n % 30}", 1, sleep_ms=world.rng.choice([0, 1, 20, 100]))
    await supervised.drained(within_s=900)
    assert len(given_up(world)) == len(bad)
    assert settled(world) == sorted({f"p{n}" for n in range(1, 121)} - bad)
    world.others.clear()


async def test_an_event_that_kills_now_and_then_is_done_when_it_does_not(world: World) -> None:
    left = LEAST_CRASHES - 1

    def deadly(payment: Payment) -> bool:
        nonlocal left
        left -= payment.id == "moody"
        return payment.id == "moody" and left >= 0

    world.pay("a1", 1, id="moody")
    supervised = Supervised(world, deadly)
    await supervised.drained()
    assert given_up(world) == [] and settled(world) == ["moody"]
    # Its count is gone with it.
    assert supervised.worker.notes.suspects == []
    world.check()


@pytest.mark.parametrize("kill_s", [0.0, 0.05, 0.3, 1.0, 2.0])
async def test_kills_from_outside_in_quick_succession_dead_letter_nobody(world: World, kill_s: float) -> None:
    """Each at the same slow event, as soon as the worker runs, or a while after."""
    world.pay("a1", 1, id="slow", sleep_ms=2_500)
    world.pay("a1", 1)
    for _ in range(12):
        worker = world.start()
        await world.until_running(worker)
        await world.clock.sleep(kill_s)
        worker.kill()
        await worker.gone()
    worker = world.start()
    await world.drained(within_s=300)
    assert given_up(world) == []
    assert settled(world) == ["p2", "slow"]
    world.check()


async def test_a_worker_that_is_told_to_end_and_killed_meanwhile_blames_nobody(world: World) -> None:
    world.pay("a1", 1, id="slow", sleep_ms=60_000)
    for _ in range(2 * LEAST_CRASHES):
        worker = world.start()
        await world.until(lambda w=worker: w.engine.runners[0].context.holding)
        worker.engine.stop()
        await world.clock.sleep(1)
        worker.kill()
        await worker.gone()
        assert world.notes_of("w1", world.plan()).suspects == []


@pytest.mark.parametrize(
    "point", ["barrier.before_seal", "barrier.after_seal", "commit.before_store", "commit.after_store"]
)
async def test_a_worker_that_dies_while_it_commits_has_no_event_in_hand(world: World, point: str) -> None:
    for _ in range(LEAST_CRASHES + 2):
        worker = world.start()
        await world.until_running(worker)
        reached = worker.kill_at(point)
        world.pay("a1", 1)
        await asyncio.wait_for(reached.wait(), 60)
        await worker.gone()
        assert [s.crashes for s in world.notes_of("w1", world.plan()).suspects if s.crashes] == []
    world.start()
    await world.drained()
    world.check()


async def test_a_worker_that_dies_between_two_events_of_a_work_unit_has_none_in_hand(world: World) -> None:
    for _ in range(200):
        world.pay("a1", 1, sleep_ms=5)
    worker = world.start(commit_interval_ms=60_000)
    await world.until(lambda: len(world.work.handled) > 5)
    held: list[int] = []
    reached = worker.kill_at("barrier.before_seal", then=lambda: held.append(worker.notes.slots[0][HOLDS]))
    worker.engine.stop()
    await asyncio.wait_for(reached.wait(), 60)
    # It stands at the gate, in the midst of what it was given.
    assert held == [1]
    await worker.gone()
    assert world.notes_of("w1", world.plan()).suspects == []


async def test_a_store_that_was_lost_begins_the_count_anew(world: World) -> None:
    world.pay("a1", 1, id="deadly")
    deaths = 0

    async def before(payment: Payment) -> None:
        nonlocal deaths
        deaths += 1
        [worker] = [w for w in world.workers.values() if not w.killed]
        worker.kill()
        if deaths == LEAST_CRASHES - 1:
            world.left.clear()
        await asyncio.Event().wait()

    world.work.before = before
    for _ in range(2 * LEAST_CRASHES - 1):
        worker = world.start()
        await asyncio.wait({worker.running}, timeout=30)
        await worker.gone()
    world.start()
    await world.drained()
    assert deaths == 2 * LEAST_CRASHES - 1
    assert [attempts for _, _, attempts in given_up(world)] == [LEAST_CRASHES]


async def test_an_event_that_cannot_even_be_looked_at_is_dead_lettered_as_it_came(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the process is the code that reads its id, or decodes it."""
    supervised: list[Supervised] = []
    deaths = 0

    def ident(payment: Payment) -> str:
        nonlocal deaths
        worker = supervised[0].worker if supervised else None
        if payment.id == "deadly" and worker is not None:
            deaths += 1
            worker.kill()
            raise SystemExit(1)
        return payment.id

    dedup = Dedup(ident, window=timedelta(days=7))
    world.pipeline = payments_pipeline(world.work, dedup=dedup)
    supervised.append(Supervised(world, lambda payment: False))
    await world.until_running(supervised[0].worker)
    for n in range(10):
        world.pay("a1", 1, id="deadly" if n == 4 else None)
    await supervised[0].drained()
    assert [(reason, attempts) for reason, _, attempts in given_up(world)] == [("failed", LEAST_CRASHES + 1)]
    assert len(settled(world)) == 9
    assert deaths >= LEAST_CRASHES + 1


async def test_of_two_agents_the_one_whose_event_ends_the_process_is_found(tmp_path: Path) -> None:
    """The other one always has something in hand."""
    world = World(tmp_path, partitions=2)
    try:
        seen: Counter[str] = Counter()

        async def busy(payment: Any) -> None:
            seen[payment.id] += 1
            await asyncio.sleep(0.2)

        plan = world.pipeline.plan()
        plan.agents.append(AgentPlan("busy", plan.agents[0].sources, AgentKind.COROUTINE, busy))
        world.plan = lambda: plan  # type: ignore[method-assign]
        for n in range(60):
            world.pay(f"a{n % 8}", 1, id="deadly" if n == 30 else None)
        supervised = Supervised(world, lambda payment: payment.id == "deadly")
        await supervised.drained(within_s=600)
        dead = [(reason, attempts) for reason, _, attempts in given_up(world)]
        assert dead == [("failed", LEAST_CRASHES)]
        assert len(seen) == 60 and len(settled(world)) == 59
    finally:
        await world.close()


async def test_what_one_worker_counts_another_does_not(world: World) -> None:
    world.pay("a1", 1, id="deadly")
    deaths: list[Worker] = []
    names = ["w1"] * 3 + ["w2"] * 3 + ["w1"] * 2

    async def before(payment: Payment) -> None:
        [worker] = [w for w in world.workers.values() if not w.killed]
        deaths.append(worker)
        worker.kill()
        await asyncio.Event().wait()

    world.work.before = before
    for name in names:
        worker = world.start(name)
        await asyncio.wait({worker.running}, timeout=120)
        await worker.gone()
    world.start("w1")
    await world.drained(within_s=120)
    assert [w.name for w in deaths] == names
    assert [attempts for _, _, attempts in given_up(world)] == [LEAST_CRASHES]
