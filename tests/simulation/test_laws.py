"""Each law goes red when the history is changed in the way that it forbids, and none of them is red before."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import orjson
import pytest

from semel.memory.batch import MemoryRecord
from semel.port import TP
from semel.state import positions
from semel.state.dedup_marks import unpack
from semel.state.timers import is_name, name_row, place_of
from semel.testing.clock import run_virtual
from tests.simulation.history import (
    Appended,
    Created,
    Ended,
    Generation,
    History,
    OffsetsEnded,
    OffsetsSent,
    Recovery,
    transactions,
)
from tests.simulation.laws import LAWS, Case, judge
from tests.simulation.oracle import Effect
from tests.simulation.records import origin, reminder_of, superseded_of
from tests.simulation.world import SimulatedWorld

SINK, POSITIONS, SOURCE = TP("settlements", 0), TP("payments-positions", 0), TP("payments", 0)
LETTERS, MARKS = TP("payments.dlq", 0), TP("payments-dedup-changelog", 0)
REMINDERS, TIMERS = TP("reminders", 0), TP("payments-timers", 0)


async def recorded(folder: Path) -> History:
    """One partition: payments, redeliveries, an aborted input, a note, a crash, a second life."""
    world = SimulatedWorld(folder, seed=11, partitions=1, style="stream", window=timedelta(days=7), real=False)
    try:
        worker = world.boot("w1")
        for i in range(6):
            world.pay_many(8)
            world.pay("a1", 5)
            world.pay("a1", 7, remind_ms=[200, 86_400_000][i % 2])
            # Replaced, but for the last that is not cancelled; of another key one that is sent, and one that is set after that.
            world.pay("a2", 7, remind_ms=80_000_000, named=True)
            world.pay("a3", 7, remind_ms=[100, -2][i % 2], named=i % 2 == 0)
            world.begin_input(3)(i % 2 == 0)
            if i == 2:
                world.note(worker)
            await world.clock.sleep(0.3)
            if i == 3:
                world.crash(worker, "by chance")
                worker = world.boot("w1") if not world.workers else await reborn(world)
        await world.rest()
        assert world.judged().notes == {"n0": True}
        return world.judged()
    finally:
        await world.close()


async def reborn(world: SimulatedWorld):
    while world.workers:
        await world.clock.sleep(0.01)
    return world.boot("w1")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> History:
    return run_virtual(recorded(tmp_path_factory.mktemp("recorded")))


@pytest.fixture
def history(clean: History) -> History:
    return copy.deepcopy(clean)


def writes(history: History, tp: TP, *, committed: bool = True) -> Iterator[list[MemoryRecord]]:
    """The records of each transaction in a log, to be changed in place."""
    for t in transactions(history.events):
        if bool(t.outcomes.get(tp)) is committed and tp in t.writes:
            for event in history.events:
                if isinstance(event, Appended) and event.tp == tp and event.records[:1] == t.writes[tp][:1]:
                    yield event.records


def largest(history: History, tp: TP) -> list[MemoryRecord]:
    return max(reversed([*writes(history, tp)]), key=len)


def put(record: MemoryRecord, **changed: object) -> None:
    record.value = orjson.dumps({**orjson.loads(record.value or b""), **changed})


# ---------------------------------------------------------------------- what is changed


def an_output_is_removed(h: History) -> None:
    largest(h, SINK).pop(0)


def a_dead_letter_is_removed(h: History) -> None:
    largest(h, LETTERS).pop()


def an_output_is_doubled(h: History) -> None:
    records = largest(h, SINK)
    records.append(copy.copy(records[0]))


def two_outputs_of_a_key_are_swapped(h: History) -> None:
    for records in writes(h, SINK):
        mine = [r for r in records if r.key == b"a1"]
        if len(mine) > 1:
            mine[0].value, mine[-1].value = mine[-1].value, mine[0].value
            return
    raise AssertionError("no epoch has two outputs of a1")


def an_output_is_of_an_aborted_record(h: History) -> None:
    aborted = next(r for r in writes(h, SOURCE, committed=False))[0]
    put(largest(h, SINK)[0], id=orjson.loads(aborted.value or b"")["id"])


def a_row_is_of_an_aborted_record(h: History) -> None:
    aborted = next(r for r in writes(h, SOURCE, committed=False))[0]
    row = largest(h, TP("payments-journals-changelog", 0))[0]
    row.value = orjson.dumps([orjson.loads(aborted.value or b"")["id"]])


def one_log_of_an_epoch_is_aborted(h: History) -> None:
    largest(h, SINK)
    next(e for e in h.events if isinstance(e, Ended) and e.tp == SINK and e.commit).commit = False


def the_offsets_of_an_epoch_are_aborted(h: History) -> None:
    next(e for e in h.events if isinstance(e, OffsetsEnded) and e.commit).commit = False


def an_output_moves_to_the_next_epoch(h: History) -> None:
    first, second = list(writes(h, SINK))[:2]
    second.insert(0, first.pop())


def the_offsets_are_not_the_positions(h: History) -> None:
    sent = next(e for e in h.events if isinstance(e, OffsetsSent))
    sent.offsets[SOURCE] += 1


def a_row_is_not_written(h: History) -> None:
    largest(h, TP("payments-balances-changelog", 0)).pop()


def a_mark_is_not_written(h: History) -> None:
    largest(h, TP("payments-dedup-changelog", 0)).pop()


def a_stored_row_is_another(h: History) -> None:
    rows = h.stores[0].rows["balances"]
    rows[next(iter(rows))] = b"-1"


def a_stored_mark_is_gone(h: History) -> None:
    h.stores[0].marks.pop()


def an_event_is_not_counted(h: History) -> None:
    record = largest(h, POSITIONS)[0]
    counts = orjson.loads(record.value or b"")["counts"]
    put(record, counts={**counts, "filtered": counts["filtered"] - 1})


def an_event_is_counted_as_another(h: History) -> None:
    record = largest(h, POSITIONS)[0]
    counts = orjson.loads(record.value or b"")["counts"]
    put(record, counts={**counts, "filtered": counts["filtered"] - 1, "out": counts["out"] + 1})


def stream_time_is_ahead(h: History) -> None:
    record = largest(h, POSITIONS)[0]
    put(record, stream_time=1_900_000_000_000)


def a_position_moves_back(h: History) -> None:
    first, second = list(writes(h, POSITIONS))[-2:]
    second[0].value = first[0].value
    first[0].value = next(writes(h, POSITIONS))[0].value


def the_group_moves_back(h: History) -> None:
    sent = [e for e in h.events if isinstance(e, OffsetsSent)]
    sent[-1].offsets = dict(sent[0].offsets)


def a_fenced_producer_writes(h: History) -> None:
    created = [e for e in h.events if isinstance(e, Created) and e.transactional_id == "payments-w1"]
    assert len(created) > 1
    old = created[0]
    h.events.append(Appended(h.events[-1].at, SINK, old.producer_id, old.epoch, []))


def a_member_of_an_old_generation_commits(h: History) -> None:
    at = next(i for i, e in reversed(list(enumerate(h.events))) if isinstance(e, OffsetsSent))
    h.events.insert(at, Generation(h.events[at].at, "payments", 99, ["w9"]))


def a_recovery_never_ends(h: History) -> None:
    h.recoveries.append(Recovery("the recovery", 3.0, None, 60.0))


def a_recovery_takes_too_long(h: History) -> None:
    h.recoveries.append(Recovery("the recovery", 3.0, 64.0, 60.0))


def an_expired_mark_is_kept(h: History) -> None:
    h.stores[0].marks.append((0, b"old"))


def a_row_too_many_is_kept(h: History) -> None:
    h.stores[0].rows["journals"].update({f"b{i}".encode(): b"[]" for i in range(20)})


def a_note_is_doubled(h: History) -> None:
    records = next(writes(h, TP("notes", 0)))
    records.append(copy.copy(records[0]))


def a_note_is_lost(h: History) -> None:
    next(writes(h, TP("notes", 0))).clear()


def nobody_hears_of_a_note(h: History) -> None:
    h.notes["n1"] = None


def an_output_has_another_key(h: History) -> None:
    largest(h, SINK)[0].key = b"a99"


def an_output_lacks_its_headers(h: History) -> None:
    largest(h, SINK)[0].headers = ()


def an_output_comes_of_another_event(h: History) -> None:
    first, second = largest(h, SINK)[:2]
    first.headers = second.headers


def an_output_has_another_timestamp(h: History) -> None:
    largest(h, SINK)[0].timestamp += 1


def a_dead_letter_has_other_bytes(h: History) -> None:
    largest(h, LETTERS)[0].value = b"other"


def a_dead_letter_has_another_key(h: History) -> None:
    largest(h, LETTERS)[0].key = b"other"


def a_dead_letter_lacks_a_header(h: History) -> None:
    letter = largest(h, LETTERS)[0]
    letter.headers = tuple(header for header in letter.headers if header[0] != "semel.timestamp")


def a_dead_letter_has_another_timestamp(h: History) -> None:
    largest(h, LETTERS)[0].timestamp = -1


def a_row_is_another(h: History) -> None:
    largest(h, TP("payments-balances-changelog", 0))[0].value = b"12345678"


def a_row_is_doubled(h: History) -> None:
    rows = largest(h, TP("payments-balances-changelog", 0))
    rows.append(copy.copy(rows[0]))


def a_mark_is_doubled(h: History) -> None:
    marks = largest(h, MARKS)
    marks.append(copy.copy(marks[0]))


def changed_mark(h: History, **changed: int) -> None:
    record = largest(h, MARKS)[0]
    record.value = unpack(record.value or b"")._replace(**changed).pack()


def a_mark_is_filed_elsewhere(h: History) -> None:
    changed_mark(h, filed_at=1_000)


def a_mark_is_of_another_payload(h: History) -> None:
    changed_mark(h, payload=1)


def a_mark_is_of_another_time(h: History) -> None:
    changed_mark(h, event_time=1_000)


def a_position_is_of_another_generation(h: History) -> None:
    put(largest(h, POSITIONS)[0], generation=77)


def a_position_is_of_another_writer(h: History) -> None:
    put(largest(h, POSITIONS)[0], writer="payments-w9")


def a_position_counts_other_outputs(h: History) -> None:
    put(largest(h, POSITIONS)[0], outputs={"settlements": 1_000})


def an_output_stands_in_another_partition(h: History) -> None:
    records = largest(h, SINK)
    index, event = next((i, e) for i, e in enumerate(h.events) if isinstance(e, Appended) and e.records is records)
    end = next(i for i, e in enumerate(h.events) if i > index and isinstance(e, Ended) and e.tp == SINK)
    ended, there = h.events[end], TP(SINK.topic, 1)
    assert isinstance(ended, Ended)
    h.events.insert(end, dataclasses.replace(ended, tp=there))
    h.events.insert(index + 1, dataclasses.replace(event, tp=there, records=[records.pop()]))


def keys_are_spread_otherwise_than_before(h: History) -> None:
    h.sink_sizes = {1, 2}
    sinks = orjson.loads(largest(h, POSITIONS)[0].value or b"")["sinks"]
    put(largest(h, POSITIONS)[0], sinks={"settlements": [sinks["settlements"][0], 2, 1]})


def keys_are_spread_over_what_never_was(h: History) -> None:
    h.sink_sizes = {2}


def nobody_says_where_keys_go(h: History) -> None:
    put(largest(h, POSITIONS)[0], sinks={})


def a_commit_is_past_what_was_written_after_the_source_changed(h: History) -> None:
    h.unsafe_from = next(e.at for e in reversed(h.events) if isinstance(e, Appended) and e.tp == SOURCE)


def a_reminder_is_removed(h: History) -> None:
    largest(h, REMINDERS).pop()


def a_reminder_is_doubled(h: History) -> None:
    records = largest(h, REMINDERS)
    records.append(copy.copy(records[0]))


def a_reminder_is_of_an_event_that_asked_for_none(h: History) -> None:
    record = largest(h, REMINDERS)[0]
    name, said = record.headers[-1]
    record.headers = [*record.headers[:-1], (name, b"payments/payments/0/0/+0/p1" if said else b"")]


def a_reminder_has_another_value(h: History) -> None:
    put(largest(h, REMINDERS)[0], balance=7)


def a_reminder_is_sent_before_its_time(h: History) -> None:
    [event] = [e for e in h.events if isinstance(e, Appended) and e.tp == REMINDERS][:1]
    event.at -= 0.1


def a_pending_timer_is_removed(h: History) -> None:
    sent = {r.key for records in writes(h, TIMERS) for r in records if r.value is None}
    for records in writes(h, TIMERS):
        for record in records:
            if record.key not in sent and not is_name(record.key or b""):
                records.remove(record)
                return
    raise AssertionError("nothing is pending")


def never_sent(h: History) -> list[Effect]:
    """Events whose reminder was replaced or cancelled, by an event of another transaction."""
    case = Case(copy.deepcopy(h))
    [(_, effects)] = case.truth
    sent = {origin(each.record)[1] for _, each in case.standing("reminders")}
    number = {offset: n for (topic, _, offset), n in case.transaction_of.items() if topic == "settlements"}
    ended = {
        offset for offset, by in superseded_of(effects).items() if offset not in sent and number[offset] < number[by]
    }
    return [effect for effect in effects if effect.offset in ended]


def a_cancelled_timer_stays_pending(h: History) -> None:
    """Also its name does."""
    offset = never_sent(h)[-1].offset
    rows = [r for wrote in writes(h, TIMERS) for r in wrote if not is_name(r.key or b"")]
    row = next(r for r in rows if place_of(r.key or b"").offset == offset and r.value is None)
    for wrote in writes(h, TIMERS):
        if row in wrote:
            wrote.remove(row)
            wrote.append(msgspec.structs.replace(row, key=name_row(b"a2", "another"), value=row.key))


def the_row_of_a_name_is_removed(h: History) -> None:
    last = {r.key: r for wrote in writes(h, TIMERS) for r in wrote if is_name(r.key or b"")}
    row = next(r for r in last.values() if r.value is not None)
    for wrote in writes(h, TIMERS):
        wrote[:] = [r for r in wrote if r is not row]


def a_replaced_reminder_is_sent(h: History) -> None:
    effect = never_sent(h)[0]
    _, made = reminder_of(effect, "payments", "payments", 0)
    wrote = [*writes(h, REMINDERS)][-1]
    wrote.append(msgspec.structs.replace(wrote[-1], **made._asdict()))
    [*_, last] = writes(h, POSITIONS)
    sent = orjson.loads(last[-1].value or b"")["sent_later"]
    put(last[-1], sent_later={"reminders": sent["reminders"] + 1})


def a_position_counts_other_timers(h: History) -> None:
    [*_, last] = writes(h, POSITIONS)
    put(last[-1], timers=99)


MUTATIONS: list[tuple[str, Callable[[History], None]]] = [
    ("no_loss", an_output_is_removed),
    ("no_loss", a_dead_letter_is_removed),
    ("no_duplicate_within_the_window", an_output_is_doubled),
    ("order_per_key", two_outputs_of_a_key_are_swapped),
    ("no_aborted_read", an_output_is_of_an_aborted_record),
    ("no_aborted_read", a_row_is_of_an_aborted_record),
    ("no_torn_epoch", one_log_of_an_epoch_is_aborted),
    ("no_torn_epoch", the_offsets_of_an_epoch_are_aborted),
    ("no_torn_epoch", an_output_moves_to_the_next_epoch),
    ("no_torn_epoch", the_offsets_are_not_the_positions),
    ("tables_are_the_fold_of_the_input", a_row_is_not_written),
    ("tables_are_the_fold_of_the_input", a_mark_is_not_written),
    ("tables_are_the_fold_of_the_input", a_stored_row_is_another),
    ("tables_are_the_fold_of_the_input", a_stored_mark_is_gone),
    ("conservation", an_event_is_not_counted),
    ("conservation", an_event_is_counted_as_another),
    ("stream_time_is_the_events_own", stream_time_is_ahead),
    ("positions_never_go_back", a_position_moves_back),
    ("positions_never_go_back", the_group_moves_back),
    ("a_fenced_worker_writes_nothing", a_fenced_producer_writes),
    ("a_fenced_worker_writes_nothing", a_member_of_an_old_generation_commits),
    ("recovery_ends", a_recovery_never_ends),
    ("recovery_ends", a_recovery_takes_too_long),
    ("state_stays_within_its_bound", an_expired_mark_is_kept),
    ("state_stays_within_its_bound", a_row_too_many_is_kept),
    ("an_output_without_an_event_counts_once", a_note_is_doubled),
    ("an_output_without_an_event_counts_once", a_note_is_lost),
    ("an_output_without_an_event_counts_once", nobody_hears_of_a_note),
    ("records_are_their_events_own", an_output_has_another_key),
    ("records_are_their_events_own", an_output_lacks_its_headers),
    ("records_are_their_events_own", an_output_comes_of_another_event),
    ("records_are_their_events_own", an_output_has_another_timestamp),
    ("records_are_their_events_own", a_dead_letter_has_other_bytes),
    ("records_are_their_events_own", a_dead_letter_has_another_key),
    ("records_are_their_events_own", a_dead_letter_lacks_a_header),
    ("records_are_their_events_own", a_dead_letter_has_another_timestamp),
    ("no_torn_epoch", a_row_is_another),
    ("no_torn_epoch", a_row_is_doubled),
    ("no_torn_epoch", a_mark_is_doubled),
    ("tables_are_the_fold_of_the_input", a_mark_is_doubled),
    ("tables_are_the_fold_of_the_input", a_mark_is_filed_elsewhere),
    ("tables_are_the_fold_of_the_input", a_mark_is_of_another_payload),
    ("tables_are_the_fold_of_the_input", a_mark_is_of_another_time),
    ("a_position_says_who_wrote_it", a_position_is_of_another_generation),
    ("a_position_says_who_wrote_it", a_position_is_of_another_writer),
    ("a_position_says_who_wrote_it", a_position_counts_other_outputs),
    ("a_key_stays_in_its_partition", an_output_stands_in_another_partition),
    ("a_key_stays_in_its_partition", keys_are_spread_otherwise_than_before),
    ("a_key_stays_in_its_partition", keys_are_spread_over_what_never_was),
    ("a_key_stays_in_its_partition", nobody_says_where_keys_go),
    ("a_timer_is_sent_once_when_it_is_due", a_reminder_is_removed),
    ("a_timer_is_sent_once_when_it_is_due", a_reminder_is_doubled),
    ("a_timer_is_sent_once_when_it_is_due", a_reminder_is_of_an_event_that_asked_for_none),
    ("a_timer_is_sent_once_when_it_is_due", a_reminder_has_another_value),
    ("a_timer_is_sent_once_when_it_is_due", a_reminder_is_sent_before_its_time),
    ("a_timer_is_sent_once_when_it_is_due", a_pending_timer_is_removed),
    ("a_timer_is_sent_once_when_it_is_due", a_cancelled_timer_stays_pending),
    ("a_timer_is_sent_once_when_it_is_due", the_row_of_a_name_is_removed),
    ("a_timer_is_sent_once_when_it_is_due", a_replaced_reminder_is_sent),
    ("a_timer_is_sent_once_when_it_is_due", a_position_counts_other_timers),
    ("nothing_is_done_of_a_source_that_is_another", a_commit_is_past_what_was_written_after_the_source_changed),
]


def test_a_clean_history_breaks_no_law(history: History) -> None:
    assert [str(v) for v in judge(history)] == []
    assert len(list(writes(history, SINK))) > 3
    assert positions.decode(largest(history, POSITIONS)[0].value or b"", "").counts["in"] > 0


def test_every_law_has_a_mutation() -> None:
    assert {law.__name__ for law in LAWS} == {name for name, _ in MUTATIONS}


@pytest.mark.parametrize("law, mutate", MUTATIONS, ids=[mutate.__name__ for _, mutate in MUTATIONS])
def test_its_law_goes_red_when(history: History, law: str, mutate: Callable[[History], None]) -> None:
    mutate(history)
    assert law in {v.law for v in judge(history)}
