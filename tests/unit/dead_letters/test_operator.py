"""The operator on an in-memory cluster, beside workers that run: each letter once, whatever ends in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from semel import Dedup, Output, Retry, Topic
from semel.dead_letters import decisions
from semel.dead_letters.audit import decode, hashed
from semel.dead_letters.decisions import NotReplayable, Selection
from semel.dead_letters.letter import letter_of
from semel.dead_letters.operator import Operator, TakenOver, Uncommitted, Why
from semel.dead_letters.reading import NoLetters
from semel.dead_letters.setting_aside import archive, forget
from semel.memory.faults import Call, lose_answer, lose_request, refuse
from semel.port import TP
from semel.proof import Verdict
from semel.proof.proof import Law
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.state import replay
from tests.unit.harness import APP, Payment, World, payments_pipeline
from tests.unit.proof.rig import History, broken

LETTERS, AUDIT = f"{APP}.dlq", f"{APP}-audit"
WHY = Why("ada", "mended")
STEPS = ("before_partitions", "after_partitions", "after_produce", "after_end")


class Dying(Failpoints):
    """Ends the operator's task where it is told to, as a kill would: nothing of it runs any more."""

    def __init__(self, point: str, nth: int) -> None:
        super().__init__()
        self.left = nth

        async def die() -> None:
            self.left -= 1
            if not self.left:
                raise asyncio.CancelledError

        self.hooks[point] = die


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    # Nothing succeeds before the work is mended, and that is the events' fault.
    retry = Retry(1, fatal=(RuntimeError,))
    made = History(tmp_path, partitions=2, commit_interval_ms=10, pipeline={"retry": retry})
    yield made
    await made.world.close()


async def failed(history: History, count: int, **fields: Any) -> None:
    """So many events that fail as long as nobody mends the work."""
    for number in range(count):
        history.world.pay(f"a{number % 5}", 1, id=f"bad{number}", fails=-1, **fields)
    history.world.start()
    await history.world.drained()


def mend(world: World) -> None:
    world.work.maybe_fail = lambda payment: None  # type: ignore[method-assign]


async def operator(
    world: World, name: str = "dlq", failpoints: Failpoints | None = None, *, opened: bool = True
) -> Operator:
    found = Operator(await world.connected(name), world.clock, world.plan(), EngineSettings(), failpoints=failpoints)
    if opened:
        await found.open()
    return found


async def replay_all(by: Operator, selection: Selection | None = None, *, watched: bool = False, **options: Any) -> Any:
    fates = await by.watch(20) if watched else None
    return await by.write_all("replay", selection or Selection(), WHY, decisions.replayed, fates=fates, **options)


def settled(history: History) -> list[str]:
    return sorted(history.said(r).id.decode() for _, r in history.entries("settlements"))


def audited(history: History) -> list[Any]:
    return [decode(r.value or b"", "") for _, r in history.entries(AUDIT)]


async def test_letters_come_back_once_and_take_effect(history: History) -> None:
    await failed(history, 30)
    mend(history.world)
    done = await replay_all(await operator(history.world), watched=True)
    assert (done.letters, done.fates, done.stopped, done.skipped) == (30, (30, 30, 0), "", {})
    await history.world.drained()
    assert settled(history) == sorted(f"bad{n}" for n in range(30))
    again = await replay_all(await operator(history.world, "second"))
    assert again.letters == 0
    # Said to be done again, the pipeline itself knows that they took effect.
    again = await replay_all(await operator(history.world, "third"), Selection(again=True))
    assert again.letters == 30
    await history.world.drained()
    assert len(settled(history)) == 30
    entries = audited(history)
    assert {(e.action, e.by, e.reason, e.topic) for e in entries} == {("replay", "ada", "mended", LETTERS)}
    assert [e.count for e in entries] == [20, 10, 20, 10]
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", [1, 2])
async def test_an_operator_that_dies_at_any_step_loses_and_doubles_no_letter(
    history: History, step: str, nth: int
) -> None:
    await failed(history, 60)
    mend(history.world)
    dying = await operator(history.world, "first", Dying(f"commit.{step}", nth))
    with pytest.raises(asyncio.CancelledError):
        await replay_all(dying)
    rest = await replay_all(await operator(history.world, "second"))
    told = sum(e.count for e in audited(history))
    assert told == 60
    assert rest.letters == {1: 60 - 20 * (step == "after_end"), 2: 40 - 40 * (step == "after_end")}[nth]
    # Not even the pipeline had to know: each is in the source once more.
    replays = [r for _, r in history.entries("payments") if dict(r.headers).get("semel.replay")]
    assert len({(r.key, r.value) for r in replays}) == len(replays) == 60
    await history.world.drained()
    assert settled(history) == sorted(f"bad{n}" for n in range(60))


@pytest.mark.parametrize("api", ["AddPartitionsToTxn", "Produce", "EndTxn"])
@pytest.mark.parametrize("fault", [lose_request, lose_answer, lambda: refuse(7, applied=True)])
async def test_an_exchange_that_is_lost_loses_and_doubles_no_letter(history: History, api: str, fault: Any) -> None:
    await failed(history, 45)
    mend(history.world)
    by = await operator(history.world)
    calls = 0

    def script(call: Call) -> Any:
        nonlocal calls
        if call.client == "dlq" and call.api == api:
            calls += 1
            return fault() if calls in (1, 4) else None
        return None

    history.world.cluster.faults.script(script)
    done = await replay_all(by)
    assert calls > 1
    assert done.letters == sum(e.count for e in audited(history)) == 45
    replays = [r for _, r in history.entries("payments") if dict(r.headers).get("semel.replay")]
    assert len({(r.key, r.value) for r in replays}) == len(replays) == 45
    await history.world.drained()
    assert len(settled(history)) == 45


async def test_of_two_operators_the_second_goes_on_and_the_first_is_told(history: History) -> None:
    await failed(history, 45)
    mend(history.world)
    first = await operator(history.world, "first")
    second = await operator(history.world, "second")
    with pytest.raises(TakenOver, match=r"another `semel dlq` acts on the dead letters of 'payments' since"):
        await replay_all(first)
    assert (await replay_all(second)).letters == 45


async def test_one_whose_commit_has_no_answer_does_not_redo_what_another_did_meanwhile(history: History) -> None:
    await failed(history, 45)
    mend(history.world)
    points = Failpoints()
    first = await operator(history.world, "first", points)

    async def meanwhile() -> None:
        del points.hooks["commit.before_partitions"]
        assert (await replay_all(await operator(history.world, "second"))).letters == 45
        raise TimeoutError

    points.hooks["commit.before_partitions"] = meanwhile
    with pytest.raises(TakenOver, match=r"another `semel dlq` acts on the dead letters of 'payments' since"):
        await replay_all(first)
    assert sum(e.count for e in audited(history)) == 45
    replays = [r for _, r in history.entries("payments") if dict(r.headers).get("semel.replay")]
    assert len({(r.key, r.value) for r in replays}) == len(replays) == 45


async def test_it_stops_when_most_of_what_it_replays_dies_again(history: History) -> None:
    await failed(history, 200)
    done = await replay_all(await operator(history.world), watched=True)
    assert done.letters == decisions.FIRST_BATCH
    assert "20 of 20 came back to the dead letters: the cause is still there" in done.stopped
    by = await operator(history.world, "second")
    # Those that came back are letters of their own, of the next revision.
    opened = [letter async for letter in by.selected(Selection())]
    assert len(opened) == 200
    assert [decisions.revision_of(letter) for letter in opened].count(1) == 20
    mend(history.world)
    done = await replay_all(by, watched=True)
    assert (done.letters, done.fates.back, done.stopped) == (200, 0, "")
    assert len(settled(history)) == 200


async def test_replays_that_are_parked_before_they_die_again_are_waited_for(tmp_path: Path) -> None:
    """The group's offsets are past them while they wait for their last attempts."""
    retry = Retry(3, timedelta(seconds=2), timedelta(seconds=2))
    history = History(tmp_path, partitions=2, commit_interval_ms=10, pipeline={"retry": retry})
    await failed(history, 60)
    done = await replay_all(await operator(history.world), watched=True)
    assert done.letters == decisions.FIRST_BATCH
    assert "20 of 20 came back to the dead letters: the cause is still there" in done.stopped
    mend(history.world)
    done = await replay_all(await operator(history.world, "second"), watched=True)
    assert (done.letters, done.fates.known, done.fates.back, done.stopped) == (60, 60, 0, "")
    await history.world.close()


async def test_it_goes_on_where_told_to(history: History) -> None:
    await failed(history, 60)
    done = await replay_all(await operator(history.world), watched=True, keep_going=True)
    assert (done.letters, done.stopped) == (60, "")
    assert (done.fates.known, done.fates.back) == (60, 60)


async def test_a_pipeline_that_does_not_run_is_not_run_over(history: History) -> None:
    await failed(history, 60)
    [worker] = history.world.workers.values()
    await worker.stop()
    done = await replay_all(await operator(history.world), watched=True)
    assert done.letters == decisions.FIRST_BATCH
    assert "no worker of 'payments' has taken 20 replayed letters within 20 s" in done.stopped


async def test_no_more_letters_a_second_than_it_may(history: History) -> None:
    await failed(history, 60)
    mend(history.world)
    began = history.world.clock.monotonic()
    done = await replay_all(await operator(history.world), rate=10)
    assert done.letters == 60
    assert 4 < history.world.clock.monotonic() - began < 8
    assert {e.count for e in audited(history)} == {10}


async def test_an_edited_letter_takes_effect_with_its_new_value(history: History) -> None:
    await failed(history, 3)
    by = await operator(history.world)
    letter = next(iter([letter async for letter in by.selected(Selection())]))
    event = orjson.loads(letter.record.value or b"")
    value = orjson.dumps({**event, "fails": 0, "amount": 70})
    only = Selection(at=(letter.at.partition, letter.offset))
    done = await by.write_all(
        "edit", only, WHY, lambda one, _: decisions.replayed(one, value, edited=True), before=hashed(letter.record.value),
        after=hashed(value),
    )  # fmt: skip
    assert done.letters == 1
    await history.world.drained()
    assert settled(history) == [event["id"]] * 2, "with its receipt"
    [entry] = audited(history)
    assert (entry.action, entry.more["after"]) == ("edit", hashed(value))
    assert by.ledger.state(letter) == "edit"
    # Its original stays where it is, and the proof knows of the edit.
    assert (await by.reader.letter(letter.at, letter.offset)).record.value == letter.record.value
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()


async def test_an_edited_letter_that_is_held_is_replayed_later(history: History) -> None:
    await failed(history, 3)
    by = await operator(history.world)
    letter = next(iter([letter async for letter in by.selected(Selection())]))
    value = orjson.dumps({**orjson.loads(letter.record.value or b""), "fails": 0})
    only = Selection(at=(letter.at.partition, letter.offset))
    await by.write_all("edit", only, WHY, lambda one, _: decisions.held(one, value))
    await history.world.clock.sleep(1)
    assert settled(history) == []
    opened = [one async for one in by.selected(Selection())]
    assert [one.text("held") != "" for one in opened].count(True) == 1
    assert len(opened) == 3
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    await replay_all(by)
    await history.world.drained()
    assert len(settled(history)) == 1
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()


async def test_dropped_letters_are_done_with_and_written_nowhere(history: History) -> None:
    await failed(history, 30)
    by = await operator(history.world)
    done = await by.mark_all("drop", Selection(key=b"a1"), WHY)
    assert done.letters == 6
    assert [e.count for e in audited(history)] == [6]
    mend(history.world)
    assert (await replay_all(await operator(history.world, "second"))).letters == 24
    await history.world.drained()
    assert len(settled(history)) == 24


async def test_redirected_letters_are_in_the_other_topic_as_their_events_came(history: History) -> None:
    await failed(history, 30)
    history.world.cluster.create_topic("others", 3)
    by = await operator(history.world)
    done = await by.write_all(
        "redirect", Selection(), WHY, lambda one, value: decisions.redirected(one, value, "others", 3), to="others"
    )
    assert done.letters == 30
    there = {(r.key, r.value, r.timestamp, tuple(r.headers)) for _, r in history.entries("others")}
    assert there == {(r.key, r.value, r.timestamp, tuple(r.headers)) for _, r in history.entries("payments")}
    assert (await replay_all(by)).letters == 0


async def test_it_knows_what_the_pipeline_writes_to_also_where_only_its_events_have_named_it(history: History) -> None:
    def make(tables: Any) -> Any:
        async def settle(payments: Any) -> Any:
            async for payment in payments:
                if payment.fails:
                    raise RuntimeError("no")
                yield Output(payment, topic=Topic("alarms", value=Payment))
                yield Output(payment, topic=Topic("reminders", value=Payment), at=timedelta(days=1))

        return settle

    history.world.pipeline = payments_pipeline(history.world.work, make=make)
    history.world.pay("a1", 1, id="good")
    await failed(history, 1)
    by = await operator(history.world)
    assert await by.used_topics() >= {
        "payments",
        "settlements",
        "alarms",
        "reminders",
        LETTERS,
        AUDIT,
        f"{APP}-timers",
    }
    assert "others" not in await by.used_topics()


async def test_an_archived_group_is_hidden_until_it_recurs(history: History) -> None:
    await failed(history, 3)
    by = await operator(history.world)
    [group] = {letter.fingerprint async for letter in by.reader.letters()}
    await archive(by, group, WHY)
    assert [letter async for letter in by.selected(Selection())] == []
    history.world.pay("a1", 1, id="later", fails=-1)
    await history.world.drained()
    assert len([letter async for letter in by.selected(Selection())]) == 1
    with pytest.raises(NoLetters, match="holds no letter of the group 'nothing'"):
        await archive(by, "nothing", WHY)


async def test_a_forgotten_key_is_replayed_no_more_and_deleted_as_far_as_nobody_else_is_hit(history: History) -> None:
    for number, account in enumerate(["account-1", "account-1", "account-2", "account-1"]):
        # All in one partition.
        history.world.cluster.write(
            TP("payments", 0),
            [(account.encode(), orjson.dumps({"id": f"b{number}", "account": account, "amount": 1, "fails": -1}))],
        )
    history.world.start()
    await history.world.drained()
    by = await operator(history.world)
    offsets = [letter.offset async for letter in by.selected(Selection())]
    found = await forget(by, b"account-1", WHY, delete=False)
    assert (found["letters"], found["kept"]) == (3, {"0": [offsets[0], offsets[1], offsets[3]]})
    assert found["could_delete_before"] == {"0": offsets[2]}
    found = await forget(by, b"account-1", WHY, delete=True)
    # The open letter of the other key stands before the last one.
    assert found["kept"] == {"0": [offsets[3]]}
    assert found["blocked_by"] == {"0": offsets[2]}
    assert history.log(LETTERS, 0).log_start == offsets[2]
    await by.mark_all("drop", Selection(key=b"account-2"), WHY)
    found = await forget(by, b"account-1", WHY, delete=True)
    assert found["kept"] == {}
    assert b"account-1" not in b"".join(r.value or b"" for _, r in history.entries(AUDIT))
    assert [letter async for letter in by.selected(Selection(again=True))] == []


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("action", ["replay", "edit", "redirect"])
async def test_a_forgotten_letter_stays_so_whoever_asks_again(history: History, action: Any, one: bool) -> None:
    await failed(history, 5)
    mend(history.world)
    history.world.cluster.create_topic("others", 2)
    by = await operator(history.world)
    [forgotten] = [letter async for letter in by.selected(Selection(key=b"a1"))]
    await replay_all(by, Selection(key=b"a2"))
    await forget(by, b"a1", WHY, delete=False)
    before = len(history.entries("payments"))

    def make(letter: Any, value: bytes | None) -> Any:
        return (
            decisions.redirected(letter, value, "others", 2)
            if action == "redirect"
            else decisions.replayed(letter, value)
        )

    at = (forgotten.at.partition, forgotten.offset) if one else None
    done = await by.write_all(action, Selection(at=at, again=True), WHY, make)
    assert done.letters == (0 if one else 4)
    assert done.skipped == {decisions.FORGOTTEN: (1, forgotten.position)}
    await history.world.drained()
    assert b"a1" not in {r.key for _, r in [*history.entries("payments")[before:], *history.entries("others")]}
    assert b"bad1" not in {history.said(r).id for _, r in history.entries("settlements")}
    assert (await operator(history.world, "other")).ledger.state(forgotten) == "forget"


async def test_a_value_that_was_left_out_is_taken_from_the_source_while_it_is_there(history: History) -> None:
    history.cluster.create_topic(LETTERS, 2, {"max.message.bytes": "6000"})
    event = {"id": "large", "account": "a1" + "x" * 9_000, "amount": 1, "fails": -1}
    tp, offset = history.world.write(event, "a1")
    history.world.start()
    await history.world.drained()
    by = await operator(history.world)
    [letter] = [letter async for letter in by.selected(Selection())]
    assert letter.record.value is None
    assert await by.value_of(letter) == orjson.dumps(event)
    history.cluster.log(tp).delete_before(offset + 1)
    with pytest.raises(NotReplayable, match="it is not there any more"):
        await by.value_of(letter)
    done = await replay_all(by)
    assert (done.letters, done.selected) == (0, 1)
    assert "it is not there any more" in next(iter(done.skipped))


async def test_a_large_letter_is_replayed_from_its_source(history: History) -> None:
    history.cluster.create_topic(LETTERS, 2, {"max.message.bytes": "6000"})
    history.world.write({"id": "large", "account": "a1" + "x" * 9_000, "amount": 1, "fails": -1}, "a1")
    history.world.start()
    await history.world.drained()
    mend(history.world)
    assert (await replay_all(await operator(history.world))).letters == 1
    await history.world.drained()
    assert settled(history) == ["large"]


async def test_a_record_made_anew_where_the_letter_came_from_is_not_taken_for_it(history: History) -> None:
    await failed(history, 1)
    by = await operator(history.world)
    [letter] = [letter async for letter in by.selected(Selection())]
    left = letter._replace(own={**letter.own, "semel.left_out": b"a value", "semel.timestamp": b"5"})
    with pytest.raises(NotReplayable, match="it is not there any more"):
        await by.value_of(left)


async def test_without_a_dead_letter_topic_there_is_nothing_to_do(history: History) -> None:
    by = await operator(history.world, opened=False)
    with pytest.raises(NoLetters, match="there is no dead-letter topic"):
        await by.open()
    assert AUDIT not in history.cluster.topics()


async def test_a_letter_of_a_source_that_is_none_any_more_stays_where_it_is(history: History) -> None:
    await failed(history, 2)
    [worker] = history.world.workers.values()
    await worker.stop()
    history.cluster.create_topic("orders", 2)
    history.world.pipeline.source = Topic("orders", key=str, value=Payment)
    done = await replay_all(await operator(history.world))
    assert (done.letters, done.selected) == (0, 2)
    assert "'payments', which is no source of 'payments' any more" in next(iter(done.skipped))


async def test_who_may_not_write_the_audit_does_nothing(history: History) -> None:
    await failed(history, 3)
    await operator(history.world)
    by = await operator(history.world, "second")
    history.cluster.faults.deny(AUDIT, "Write")
    with pytest.raises(Uncommitted, match="nothing of it is done"):
        await replay_all(by)
    history.cluster.faults.allow(AUDIT)
    assert not [r for _, r in history.entries("payments") if dict(r.headers).get("semel.replay")]


async def test_what_another_pipeline_has_in_a_shared_topic_keeps_a_forgotten_key_s_letters(history: History) -> None:
    await failed(history, 10)
    (first, tp), _ = [
        (letter.offset, letter.at) async for letter in (await operator(history.world)).selected(Selection(key=b"a1"))
    ]
    foreign = [("semel.pipeline", b"others"), ("semel.topic", b"x"), ("semel.partition", b"0"), ("semel.offset", b"0")]
    at = history.cluster.write(tp, [(b"k", b"x")], headers=foreign)
    history.world.pay("a1", 1, id="behind", fails=-1)
    await history.world.drained()
    by = await operator(history.world)
    await by.mark_all("drop", Selection(), WHY)
    found = await forget(by, b"a1", WHY, delete=True)
    # Nobody here can be done with it, so that nobody is told to.
    assert found["blocked_by"] == {} and found["blocked_by_others"] == {str(tp.partition): at}
    assert found["deleted_before"] == {str(tp.partition): at} and first < at
    assert history.log(LETTERS, tp.partition).log_start == at


@pytest.mark.parametrize("point", STEPS[1:])
@pytest.mark.parametrize("action", ["edit", "redirect", "forget", "archive"])
async def test_whatever_an_operator_dies_amid_is_done_once_when_it_is_done_again(
    history: History, action: Any, point: str
) -> None:
    await failed(history, 6)
    mend(history.world)
    history.world.cluster.create_topic("others", 2)

    async def act(by: Operator) -> None:
        [group] = {letter.fingerprint async for letter in by.reader.letters()}
        if action == "forget":
            await forget(by, b"a1", WHY, delete=True)
        elif action == "archive":
            await archive(by, group, WHY)
        elif action == "redirect":
            to_others = partial(decisions.redirected, topic="others", partitions=2)
            await by.write_all("redirect", Selection(), WHY, to_others)
        else:
            await by.write_all("edit", Selection(key=b"a1"), WHY, decisions.replayed)

    with contextlib.suppress(asyncio.CancelledError):
        await act(await operator(history.world, failpoints=Dying(f"commit.{point}", 1)))
    second = await operator(history.world, "second")
    await act(second)
    await history.world.drained()
    left = [letter async for letter in second.selected(Selection())]
    assert len(left) == {"edit": 5, "redirect": 0, "forget": 5, "archive": 0}[action]
    if action == "redirect":
        moved = sorted(orjson.loads(r.value or b"")["id"] for _, r in history.entries("others"))
        assert moved == [f"bad{n}" for n in range(6)]
    elif action == "edit":
        assert settled(history) == ["bad1"]


async def test_replays_whose_window_is_over_are_told_from_those_whose_cause_is_still_there(tmp_path: Path) -> None:
    made = History(
        tmp_path, partitions=1, commit_interval_ms=10,
        pipeline={"retry": Retry(1, fatal=(RuntimeError,)), "dedup": Dedup("id", window=timedelta(seconds=2))},
    )  # fmt: skip
    await failed(made, 2)
    for number in range(6):
        await made.world.clock.sleep(1.5)
        made.world.pay("a1", 1, id=f"good{number}")
    await made.world.drained()
    mend(made.world)
    by = await operator(made.world)
    done = await replay_all(by, watched=True)
    assert (done.letters, done.fates, done.late) == (2, (2, 2, 2), 2)
    # Nor do they take effect, or vanish, however often they are replayed.
    done = await replay_all(by, watched=True)
    assert (done.letters, done.late) == (2, 2)
    assert len([letter async for letter in by.selected(Selection())]) == 2
    await made.world.close()


async def test_a_letter_of_another_pipeline_is_left_alone(history: History) -> None:
    await failed(history, 1)
    [(_, record)] = history.entries(LETTERS)
    foreign = [(n, b"others" if n == "semel.pipeline" else v) for n, v in record.headers]
    at = history.cluster.write(TP(LETTERS, 0), [(b"a1", b"x")], headers=foreign)
    by = await operator(history.world)
    assert len([letter async for letter in by.selected(Selection(again=True))]) == 1
    with pytest.raises(NoLetters, match="no dead letter of 'payments'"):
        await replay_all(by, Selection(at=(0, at)))
    assert letter_of(TP(LETTERS, 0), record).text("pipeline") == APP


# -- keys that are held


@pytest.fixture
async def holding(tmp_path: Path) -> AsyncIterator[History]:
    retry = Retry(2, timedelta(milliseconds=20), timedelta(milliseconds=20), then="hold")
    made = History(tmp_path, partitions=1, commit_interval_ms=10, pipeline={"retry": retry}, halt_after=0)
    yield made
    await made.world.close()


async def held(history: History) -> None:
    """Three keys, each behind the letter of its first event; of another one nothing is bad."""
    for account in ("a1", "a2", "a3"):
        history.world.pay(account, 1, id=f"{account}.bad", fails=-1)
        history.world.pay(account, 2, id=f"{account}.behind")
    history.world.pay("a4", 1, id="a4.good")
    history.world.start()
    await history.world.until(lambda: held_now(history) == (3, 3) and len(history.entries(LETTERS)) == 3, within_s=60)


def held_now(history: History) -> tuple[int, int]:
    """As far as it is committed; else nothing that is ever so."""
    tasks = [task for worker in history.world.workers.values() for task in worker.engine.tasks.values()]
    if any(task.touched or task.parked_events != task.committed.parked for task in tasks):
        return -1, -1
    return sum(task.held_keys for task in tasks), sum(task.parked_events for task in tasks)


def by_account(history: History) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for _, record in history.entries("settlements"):
        found.setdefault((record.key or b"").decode(), []).append(history.said(record).id.decode())
    return found


async def test_replayed_edited_and_dropped_letters_let_their_keys_go_on_in_order(holding: History) -> None:
    await held(holding)
    proof = await holding.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    by = await operator(holding.world)
    await by.mark_all("drop", Selection(key=b"a1"), WHY)
    event = orjson.dumps({"id": "a2.bad", "account": "a2", "amount": 7})
    await by.write_all(
        "edit",
        Selection(key=b"a2"),
        WHY,
        lambda one, _: decisions.replayed(one, event, edited=True),
        value_needed=False,
    )
    await replay_all(by, Selection(key=b"a3"))
    await holding.world.until(lambda: held_now(holding) == (1, 1), within_s=60)
    # What was replayed as it was has died again, and its key waits for the new letter.
    assert by_account(holding) == {"a4": ["a4.good"], "a1": ["a1.behind"], "a2": ["a2.bad", "a2.behind"]}
    mend(holding.world)
    await replay_all(by, Selection(key=b"a3"))
    await holding.world.drained()
    assert by_account(holding)["a3"] == ["a3.bad", "a3.behind"]
    assert held_now(holding) == (0, 0)
    proof = await holding.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()


async def test_an_output_that_comes_too_early_is_found_beside_replays_that_were_to(holding: History) -> None:
    await held(holding)
    mend(holding.world)
    await replay_all(await operator(holding.world))
    await holding.world.drained()
    assert (await holding.proof()).verdict is Verdict.CLEAN
    for id in ("later", "last"):
        holding.world.pay("a1", 5, id=id)
    await holding.world.drained()
    first, last = [r for _, r in holding.entries("settlements") if r.key == b"a1"][-2:]
    first.headers, last.headers = last.headers, first.headers
    first.value, last.value = last.value, first.value
    assert broken(await holding.proof()) == {Law.ORDER}


async def test_a_forgotten_key_goes_on_and_nothing_of_its_letter_is_written(holding: History) -> None:
    await held(holding)
    by = await operator(holding.world)
    await forget(by, b"a1", WHY, delete=False)
    await holding.world.until(lambda: held_now(holding) == (2, 2), within_s=60)
    assert by_account(holding)["a1"] == ["a1.behind"]
    [skip] = [r for _, r in holding.entries("payments") if "semel.skip" in dict(r.headers)]
    assert (skip.key, skip.value) == (b"a1", b"")


async def test_a_redirected_letter_lets_its_key_go_on_in_the_same_transaction(holding: History) -> None:
    await held(holding)
    holding.world.cluster.create_topic("others", 1)
    by = await operator(holding.world)
    await by.write_all(
        "redirect", Selection(), WHY, lambda one, value: decisions.redirected(one, value, "others", 1), to="others"
    )
    await holding.world.drained()
    assert held_now(holding) == (0, 0)
    assert len(holding.entries("others")) == 3
    assert not {name for _, r in holding.entries("others") for name, _ in r.headers} & replay.HEADERS


@pytest.mark.parametrize("point", STEPS)
async def test_an_operator_that_dies_amid_a_drop_lets_a_key_go_on_once_or_not_at_all(
    holding: History, point: str
) -> None:
    await held(holding)
    with contextlib.suppress(asyncio.CancelledError):
        await (await operator(holding.world, failpoints=Dying(f"commit.{point}", 1))).mark_all("drop", Selection(), WHY)
    await (await operator(holding.world, "second")).mark_all("drop", Selection(), WHY)
    await holding.world.drained()
    assert held_now(holding) == (0, 0)
    assert sum(e.count for e in audited(holding)) == 3
    assert len([r for _, r in holding.entries("payments") if "semel.skip" in dict(r.headers)]) == 3
