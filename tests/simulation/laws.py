"""The laws, one function each, over a run's history. A law returns what breaks it, with the few events that witness it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, TypeAlias

import orjson

from semel.memory.batch import MemoryRecord
from semel.partitioner import partition_of
from semel.port import TP
from semel.state import positions
from semel.state.dedup_marks import PARKED, Mark
from semel.state.parked_event import decode, is_held, read_row
from semel.state.positions import Position
from semel.state.timers import is_name, place_of
from semel.testing.clock import DEFAULT_START
from tests.simulation import records
from tests.simulation.history import (
    Appended,
    Created,
    Generation,
    History,
    Logs,
    OffsetsSent,
    Standing,
    Transaction,
    logs,
    transactions,
)
from tests.simulation.oracle import Effect, Oracle

Marks: TypeAlias = Counter[tuple[bytes, Mark]]

SOURCE, SINK, NOTES, REMINDERS = "payments", "settlements", "notes", "reminders"
WITNESSES = 6


@dataclass
class Violation:
    law: str
    what: str
    witnesses: list[str]

    def __str__(self) -> str:
        return "\n  ".join([f"{self.law}: {self.what}", *self.witnesses[:WITNESSES]])


@dataclass
class Commit:
    """What one transaction did to one partition, beside what its source records must have done.

    `effects`: of the events that are done in it, in their order. `waiting`: those that are parked after it. `marks`: what it must
    write of them, and `maybe_marks`: what it may, of events that ended when their window was over.
    """

    transaction: Transaction
    before: int
    position: Position
    effects: list[Effect]
    counts: dict[str, int]
    stream: int | None
    waiting: list[Effect]
    marks: Marks
    maybe_marks: Marks


class Case:
    """A history and what follows from it, worked out once for all laws."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.app = history.app

    @cached_property
    def transactions(self) -> list[Transaction]:
        ours = {e.producer_id for e in self.history.events if isinstance(e, Created)}
        return [t for t in transactions(self.history.events) if t.producer_id in ours]

    @cached_property
    def transaction_of(self) -> dict[tuple[str, int, int], int]:
        """By topic, and by partition and offset of the event: the number of the transaction that an output committed with."""
        return {
            (tp.topic, *records.origin(record)[:2]): number
            for number, t in enumerate(self.transactions)
            for tp, wrote in t.writes.items()
            if tp.topic in (SINK, REMINDERS) and t.outcomes.get(tp)
            for record in wrote
        }

    @cached_property
    def logs(self) -> Logs:
        return logs(self.history.events)

    @cached_property
    def source_logs(self) -> Logs:
        return self.logs if self.history.source is None else logs(self.history.source)

    def written(self, topic: str, partition: int) -> list[MemoryRecord]:
        return [standing.record for standing in self.logs.committed.get(TP(topic, partition), ())]

    def standing(self, topic: str) -> list[tuple[TP, Standing]]:
        """In all partitions, in the order in which it was written."""
        found = [(tp, each) for tp, log in self.logs.committed.items() if tp.topic == topic for each in log]
        return sorted(found, key=lambda found: (found[1].index, found[0]))

    @cached_property
    def ends(self) -> dict[int, int]:
        """Where the last commit left each partition of the source."""
        return {p: commits[-1].position.topics[SOURCE].next for p, commits in enumerate(self.commits) if commits}

    @cached_property
    def taken(self) -> list[list[Standing]]:
        """The source's records of this life, by partition."""
        begins = self.history.begins
        return [
            [s for s in self.source_logs.committed.get(TP(SOURCE, p), ()) if not s.life and s.record.offset >= begins.get(p, 0)]
            for p in range(self.history.partitions)
        ]  # fmt: skip

    @cached_property
    def source(self) -> list[list[MemoryRecord]]:
        """As far as there is something to come of them."""
        return [
            [s.record for s in taken if not self.history.stopped or s.record.offset < self.ends.get(p, 0)]
            for p, taken in enumerate(self.taken)
        ]

    @cached_property
    def outputs_of(self) -> list[list[MemoryRecord]]:
        """What stands in the sink, by the partition of the source that it says it comes from."""
        found: list[list[MemoryRecord]] = [[] for _ in range(self.history.partitions)]
        for tp, standing in self.standing(SINK):
            found[self.came_from(standing.record, tp)].append(standing.record)
        return found

    @cached_property
    def outputs(self) -> list[list[dict[str, Any]]]:
        return [[_json(r) for r in records] for records in self.outputs_of]

    @cached_property
    def letters_of(self) -> list[list[MemoryRecord]]:
        found: list[list[MemoryRecord]] = [[] for _ in range(self.history.partitions)]
        for tp, standing in self.standing(f"{self.app}.dlq"):
            found[self.came_from(standing.record, tp)].append(standing.record)
        return found

    @cached_property
    def dead(self) -> list[list[tuple[int, str]]]:
        return [[letter_of(r) for r in letters] for letters in self.letters_of]

    def came_from(self, record: MemoryRecord, tp: TP) -> int:
        """From which partition of the source: as it says itself, else the one of the same number."""
        partition = (
            records.origin(record)[0] if tp.topic == SINK else int(dict(record.headers)["semel.partition"] or b"-1")
        )
        return partition if 0 <= partition < self.history.partitions else tp.partition % self.history.partitions

    def sent(self, t: Transaction, topic: str, partition: int) -> list[MemoryRecord]:
        """What of a transaction comes from that partition, in the order of its events."""
        there = [(tp, wrote) for tp, wrote in t.writes.items() if tp.topic == topic]
        found = [r for tp, wrote in there for r in wrote if self.came_from(r, tp) == partition]
        # In one log, its own order is what counts.
        return sorted(found, key=records.origin) if len(there) > 1 and topic == SINK else found

    def oracle(self, partition: int) -> Oracle:
        undone = self.history.stopped or self.history.holds
        dead = [*self.dead[partition], *(self._to_be_dead(partition) if undone else ())]
        refused = {offset for offset, why in dead if why == "refused"} if self.history.refusals else set[int]()
        return Oracle(
            self.history.window_ms, self.history.attempts, refused, stateful=self.history.stateful,
            belongs=lambda key: partition_of(key or b"", self.history.partitions) == partition,
            hopeless_attempts=self.history.hopeless_attempts,
            followed={offset for offset, why in dead if why in ("duplicate", "conflict")},
            conflicting={offset for offset, why in dead if why == "conflict"},
            hold_of=partial(records.hold_of, self.history, SOURCE, partition) if self.history.holds else None,
        )  # fmt: skip

    def _to_be_dead(self, partition: int) -> list[tuple[int, str]]:
        """What is parked at the end and is known to go to the dead letters, unless the first of its id, which it follows, does
        not: offset and why."""
        rows = {record.key or b"": record.value for record in self.written(f"{self.app}-parked", partition)}
        events = (decode(read_row(row)[1], value) for row, value in rows.items() if value is not None)
        return [(event.record.offset, event.letter[0]) for event in events if event.letter is not None]

    @cached_property
    def truth(self) -> list[tuple[Oracle, list[Effect]]]:
        """All of the source, and what must have come of it."""
        found: list[tuple[Oracle, list[Effect]]] = []
        for p, taken in enumerate(self.source):
            oracle = self.oracle(p)
            # Where all had to stop, nothing has come yet of what is parked.
            waits = {e.offset for c in self.commits[p][-1:] if self.history.stopped for e in c.waiting}
            effects = [oracle.judge(r) if r.offset in waits else oracle.take(r) for r in taken]
            found.append((oracle, [e for e in effects if e.offset not in waits]))
        return found

    @cached_property
    def commits(self) -> list[list[Commit]]:
        """By partition, in order."""
        return [self._commits(p) for p in range(self.history.partitions)]

    def _commits(self, partition: int) -> list[Commit]:
        found: list[Commit] = []
        oracle, taken, before = self.oracle(partition), 0, self.history.begins.get(partition, 0)
        source = [standing.record for standing in self.taken[partition]]
        waiting: dict[int, Effect] = {}
        tp = TP(f"{self.app}-positions", partition)
        done = [t for t in self.transactions if t.outcomes.get(tp)]
        for transaction in sorted(done, key=lambda t: t.at[tp]):
            for record in transaction.writes[tp]:
                if record.key != positions.KEY or record.value is None:
                    continue
                position = positions.decode(record.value, "")
                at = position.topics[SOURCE].next
                passed: list[Effect] = []
                while taken < len(source) and source[taken].offset < at:
                    passed.append(oracle.take(source[taken]))
                    taken += 1
                parked = {*waiting}
                for row in transaction.writes.get(TP(f"{self.app}-parked", partition), ()):
                    done = row.value is None or is_held(row.value)
                    (parked.discard if done else parked.add)(read_row(row.key or b"")[1])
                were, known = [*waiting.values()], {**waiting, **{e.offset: e for e in passed}}
                waiting = {offset: known[offset] for offset in sorted(parked) if offset in known}
                effects = sorted((e for e in (*were, *passed) if e.offset not in parked), key=lambda e: e.offset)
                marks, maybe = self._marks(were, passed, parked, oracle.stream)
                counts = dict(oracle.counts)
                for effect in waiting.values():
                    # One that waits behind an event that holds its key is not counted yet.
                    if not effect.turn:
                        continue
                    counts["in"] -= 1
                    counts[effect.counted] -= 1
                found.append(
                    Commit(
                        transaction, before, position, effects, counts, oracle.stream, [*waiting.values()], marks, maybe
                    )
                )
                before = at
        return found

    def _marks(
        self, were: Sequence[Effect], passed: Sequence[Effect], parked: Set[int], stream: int | None
    ) -> tuple[Marks, Marks]:
        """What must be written of events that were parked before and of those passed, and what may: of one that ended when its
        window was over, nobody needs to know how."""
        exact, window_ms = self.history.exact_time, self.history.window_ms
        must: list[Effect] = []
        maybe: list[Effect] = []
        for effect in (*were, *passed):
            if effect.mark is None:
                continue
            waiting = replace(effect, mark=effect.mark._replace(outcome=PARKED, revision=effect.raised))
            passes = effect.offset in {e.offset for e in passed}
            if effect.offset in parked:
                must += [waiting] if passes else []
            elif not exact or (stream or 0) > effect.mark.filed_at + window_ms:
                maybe += [effect, waiting] if passes else [effect]
            else:
                must.append(effect)
        return records.marks_of(must, exact=exact), records.marks_of(maybe, exact=exact)


def within(marks: Marks, must: Marks, maybe: Marks) -> bool:
    return must <= marks <= must + maybe


Law: TypeAlias = Callable[[Case], list[Violation]]
LAWS: list[Law] = []


def law(judge: Callable[[Case], list[tuple[str, list[str]]]]) -> Law:
    def judged(case: Case) -> list[Violation]:
        return [Violation(judge.__name__, what, witnesses) for what, witnesses in judge(case)]

    judged.__name__ = judge.__name__
    judged.__doc__ = judge.__doc__
    LAWS.append(judged)
    return judged


def judge(history: History) -> list[Violation]:
    """Every law; the first few violations of each."""
    case = Case(history)
    return [violation for each in LAWS for violation in each(case)[:3]]


Found: TypeAlias = list[tuple[str, list[str]]]


@law
def no_loss(case: Case) -> Found:
    """Each record of the source has had its effect: an output where it must have one, a dead letter where it must."""
    found: Found = []
    for p, (_, effects) in enumerate(case.truth):
        outputs = Counter(_text(o) for o in case.outputs[p])
        dead = Counter(case.dead[p])
        for effect in effects:
            if effect.output is not None:
                if not outputs[_text(effect.output)]:
                    found.append((f"{_at(p, effect)} ({effect.id}) has no output", _around(case, p, effect)))
                outputs[_text(effect.output)] -= 1
            elif effect.dead is not None:
                if not dead[effect.offset, effect.dead]:
                    what = f"{_at(p, effect)} is not among the dead letters, as {effect.dead}"
                    found.append((what, _around(case, p, effect)))
                dead[effect.offset, effect.dead] -= 1
    return found


@law
def no_duplicate_within_the_window(case: Case) -> Found:
    """Nothing is there that no record of the source asks for, or asks for once less."""
    found: Found = []
    for p, (_, effects) in enumerate(case.truth):
        wanted = Counter(_text(e.output) for e in effects if e.output is not None)
        for output, times in Counter(_text(o) for o in case.outputs[p]).items():
            if times > wanted[output]:
                writers = [str(t) for t in case.transactions if _holds(t, TP(SINK, p), output)]
                found.append((f"{output} stands {times} times in {SINK}[{p}], not {wanted[output]}", writers))
        letters = Counter((e.offset, e.dead) for e in effects if e.dead is not None)
        for letter, times in Counter(case.dead[p]).items():
            if times > letters[letter]:
                found.append(
                    (f"the dead letter {letter} of [{p}] stands there {times} times, not {letters[letter]}", [])
                )
    return found


@law
def order_per_key(case: Case) -> Found:
    """The outputs of one key stand in the order of its events."""
    found: Found = []
    for p, (_, effects) in enumerate(case.truth):
        wanted: dict[str, list[str]] = {}
        seen: dict[str, list[str]] = {}
        for effect in sorted(effects, key=lambda effect: effect.turn):
            if effect.output is not None:
                wanted.setdefault(effect.output["account"], []).append(_text(effect.output))
        for output in case.outputs[p]:
            seen.setdefault(output["account"], []).append(_text(output))
        for key, texts in wanted.items():
            # The same output may come again when the window of its id is over.
            should, there = _numbered(texts), _numbered(seen.get(key, []))
            both = {*should} & {*there}
            should, there = [o for o in should if o in both], [o for o in there if o in both]
            at = next((i for i, (a, b) in enumerate(zip(there, should, strict=True)) if a != b), None)
            if at is not None:
                found.append((f"{SINK}[{p}], key {key}: {there[at][0]} came too early",
                              [text for text, _ in there[max(0, at - 1) : at + 3]]))  # fmt: skip
    return found


@law
def no_aborted_read(case: Case) -> Found:
    """Nothing came of a record of the source whose transaction was aborted."""
    found: Found = []
    for p in range(case.history.partitions):
        gone = case.source_logs.aborted.get(TP(SOURCE, p), ())
        aborted = {s.record.offset: _id(s.record) for s in gone if not s.life}
        if not aborted:
            continue
        ids = {i for i in aborted.values() if i is not None}
        ids -= {i for i in (_id(s.record) for s in case.taken[p]) if i is not None}
        found += [(f"{o['id']} was aborted in {SOURCE}[{p}], yet has an output", [_text(o)])
                  for o in case.outputs[p] if o["id"] in ids]  # fmt: skip
        found += [(f"{SOURCE}[{p}]@{at} was aborted, yet is a dead letter", [why])
                  for at, why in case.dead[p] if at in aborted]  # fmt: skip
        for record in case.written(f"{case.app}-journals-changelog", p):
            entered = ids.intersection(_json(record) or [])
            found += [
                (f"{i} was aborted in {SOURCE}[{p}], yet stands in a table", [str(record)]) for i in sorted(entered)
            ]
        for record in case.written(f"{case.app}-dedup-changelog", p):
            if (record.key or b"").decode() in ids:
                found.append((f"{record.key!r} was aborted in {SOURCE}[{p}], yet has a mark", [str(record)]))
    return found


@law
def no_torn_epoch(case: Case) -> Found:
    """An epoch counts everywhere or nowhere, and holds just what its source records make, and the offsets they end at."""
    found: Found = []
    for t in case.transactions:
        ends = set(t.outcomes.values())
        if len(ends) > 1 or (ends and set(t.outcomes) != {*t.writes, *((None,) if t.offsets else ())}):
            found.append(("a transaction ended in parts only, or in two ways", [str(t)]))
    for p, commits in enumerate(case.commits):
        for commit in commits:
            t, at = commit.transaction, commit.position.topics[SOURCE].next
            where = f"the epoch that takes {SOURCE}[{p}] from {commit.before} to {at}"
            if t.offsets.get(TP(SOURCE, p)) != at:
                found.append((f"{where} commits the offset {t.offsets.get(TP(SOURCE, p))}", [str(t)]))
            # Those that were parked come as they are done; in which order a key's stand is another law's.
            outputs = sorted(_text(_json(r)) for r in case.sent(t, SINK, p))
            wanted = sorted(_text(e.output) for e in commit.effects if e.output is not None)
            if outputs != wanted:
                found.append((f"{where} holds {len(outputs)} outputs, not the {len(wanted)} it should",
                              [str(t), *(f"holds {o}" for o in outputs if o not in wanted),
                               *(f"lacks {o}" for o in wanted if o not in outputs)]))  # fmt: skip
            dead = sorted(letter_of(r) for r in case.sent(t, f"{case.app}.dlq", p))
            letters = [(e.offset, e.dead) for e in commit.effects if e.dead is not None]
            if dead != letters:
                found.append((f"{where} holds the dead letters {dead}, not {letters}", [str(t)]))
            for table in ("balances", "journals"):
                in_turn = sorted(commit.effects, key=lambda e: e.turn)
                rows = {k: v for e in in_turn for (name, k), v in e.rows.items() if name == table}
                log = t.writes.get(TP(f"{case.app}-{table}-changelog", p), ())
                wrote = {(r.key or b"").decode(): _json(r) for r in log}
                if wrote != rows or len(log) != len(rows):
                    what = f"{where} writes {len(log)} rows of {len(rows)} to {table} {_difference(wrote, rows)}"
                    found.append((what, [str(t)]))
            exact = case.history.exact_time
            marks = records.marks(t.writes.get(TP(f"{case.app}-dedup-changelog", p), ()), exact=exact)
            if not within(marks, commit.marks, commit.maybe_marks):
                found.append((f"{where} writes the marks {_difference(marks, commit.marks)} times", [str(t)]))
            if commit.position.parked != len(commit.waiting):
                what = f"{where} leaves {commit.position.parked} events parked by its position"
                found.append((f"{what}, {len(commit.waiting)} by their log", [str(t)]))
    return found


@law
def records_are_their_events_own(case: Case) -> Found:
    """Key, value, headers and timestamp of outputs and dead letters are those of their event, and say which it was."""
    found: Found = []
    for p, (_, effects) in enumerate(case.truth):
        # One key's in order is another law's; those of several keys may be in several logs.
        outputs = [records.written(r) for r in sorted(case.outputs_of[p], key=records.origin)]
        wanted = [records.output_of(e, case.app, SOURCE, p) for e in effects if e.output is not None]
        letters = [records.letter(r) for r in sorted(case.letters_of[p], key=letter_of)]
        dead = [records.letter_to(e, case.history, SOURCE, p) for e in effects if e.dead is not None]
        for topic, there, should in ((SINK, outputs, wanted), (f"{case.app}.dlq", letters, dead)):
            what = records.first_difference(there, should)
            if what is not None:
                found.append((f"{topic}[{p}] holds {what}", []))
    return found


@law
def a_position_says_who_wrote_it(case: Case) -> Found:
    """Its writer and generation are its transaction's, and it counts the outputs so far."""
    found: Found = []
    writers = {(e.producer_id, e.epoch): e.transactional_id for e in case.history.events if isinstance(e, Created)}
    generations: dict[tuple[int, int], set[int]] = {}
    for event in case.history.events:
        if isinstance(event, OffsetsSent):
            generations.setdefault((event.producer_id, event.epoch), set()).add(event.generation)
    for p, commits in enumerate(case.commits):
        for commit in commits:
            who, position = (commit.transaction.producer_id, commit.transaction.epoch), commit.position
            if position.writer != writers.get(who) or position.generation not in generations.get(who, ()):
                what = f"[{p}]: written by {position.writer} of generation {position.generation}"
                found.append((f"{what}, not by {writers.get(who)}", [str(commit.transaction)]))
            sent = {SINK: commit.counts["out"]} if commit.counts["out"] else {}
            if position.outputs != sent:
                found.append((f"[{p}]: {position.outputs} outputs so far, not {sent}", [str(commit.transaction)]))
    return found


@law
def tables_are_the_fold_of_the_input(case: Case) -> Found:
    """Changelogs, and the stores of those that run, hold the rows and marks that the source's records make."""
    found: Found = []
    for p, (oracle, _effects) in enumerate(case.truth):
        for table, rows in (("balances", oracle.balances), ("journals", oracle.journals)):
            folded = fold(case.written(f"{case.app}-{table}-changelog", p))
            if folded != rows:
                found.append((f"the changelog of {table}[{p}] folds to {_difference(folded, rows)}", []))
        exact = case.history.exact_time
        marks = records.marks(case.written(f"{case.app}-dedup-changelog", p), exact=exact)
        commits = case.commits[p]
        wanted = sum((c.marks for c in commits), Marks())
        if not within(marks, wanted, sum((c.maybe_marks for c in commits), Marks())):
            found.append((f"the changelog of marks [{p}] holds {_difference(marks, wanted)} times", []))
        for store in case.history.stores:
            if store.partition != p:
                continue
            for table, rows in (("balances", oracle.balances), ("journals", oracle.journals)):
                if table not in store.rows and not case.history.stateful:
                    continue
                stored = {k.decode(): orjson.loads(v) for k, v in store.rows[table].items()}
                if stored != rows:
                    found.append((f"{store.worker}'s store of {table}[{p}] holds {_difference(stored, rows)}", []))
            live = {i for i, m in oracle.marks.items() if m.filed_at + case.history.window_ms >= (oracle.stream or 0)}
            lacking = live - {key.decode() for _, key in store.marks}
            if lacking and case.history.exact_time:
                found.append((f"{store.worker}'s store of marks [{p}] lacks {sorted(lacking)[:5]}", []))
    return found


@law
def conservation(case: Case) -> Found:
    """At each position: what went in is what came out, was filtered, was a duplicate, or is dead; as many as there were."""
    found: Found = []
    for p, commits in enumerate(case.commits):
        for commit in commits:
            n, at = commit.position.counts, commit.position.topics[SOURCE].next
            if n["in"] != sum(n[name] for name in ("out", "filtered", "duplicates", "replayed", "dropped", "dead")):
                found.append((f"[{p}] at {at}: what went in is not what came of it: {n}", [str(commit.transaction)]))
            elif n != commit.counts:
                found.append((f"[{p}] at {at}: counts {_difference(n, commit.counts)}", [str(commit.transaction)]))
    return found


@law
def stream_time_is_the_events_own(case: Case) -> Found:
    """It is what the records below the position make it; whatever clocks show, it neither goes back nor ahead of them."""
    found: Found = []
    for p, commits in enumerate(case.commits):
        before: int | None = None
        for commit in commits:
            said = commit.position.stream_time.ms
            if case.history.exact_time and said != commit.stream:
                at = commit.position.topics[SOURCE].next
                found.append((f"[{p}] at {at}: stream time {said}, not {commit.stream}", [str(commit.transaction)]))
            if said is not None and ((before is not None and said < before) or said > (commit.stream or 0)):
                found.append((f"[{p}]: stream time {said} after {before}, events are at {commit.stream}",
                              [str(commit.transaction)]))  # fmt: skip
            before = said
    return found


@law
def positions_never_go_back(case: Case) -> Found:
    """Neither in the log of positions nor in the group's offsets."""
    found: Found = []
    for p, commits in enumerate(case.commits):
        for earlier, commit in pairwise(commits):
            at = commit.position.topics[SOURCE].next
            if at < commit.before:
                found.append((f"[{p}] went from {commit.before} back to {at}",
                              [str(earlier.transaction), str(commit.transaction)]))  # fmt: skip
    reached: dict[TP, int] = {}
    for t in case.transactions:
        if t.outcomes.get(None):
            for tp, offset in t.offsets.items():
                if offset < reached.get(tp, 0):
                    found.append((f"the group went from {reached[tp]} back to {offset} of {tp}", [str(t)]))
                reached[tp] = offset
    return found


@law
def a_fenced_worker_writes_nothing(case: Case) -> Found:
    """No write of a producer after another one of its id; no offsets but of the group's generation and its members."""
    found: Found = []
    fenced: dict[int, Created] = {}
    current: dict[str, Created] = {}
    group: Generation | None = None
    owner: dict[int, str] = {}
    for event in case.history.events:
        match event:
            case Created():
                before = current.get(event.transactional_id)
                if before is not None and before.producer_id != event.producer_id:
                    fenced[before.producer_id] = event
                current[event.transactional_id] = event
                owner[event.producer_id] = event.transactional_id
            case Generation():
                group = event
            case Appended() | OffsetsSent() if event.producer_id in owner:
                now = current[owner[event.producer_id]]
                if event.producer_id in fenced or event.epoch < now.epoch:
                    found.append((f"{owner[event.producer_id]} wrote as {event.producer_id}/{event.epoch} after its successor",
                                  [str(now), str(event)]))  # fmt: skip
                ours = isinstance(event, OffsetsSent) and group is not None and event.group == group.group
                if ours and event.generation != group.number:
                    found.append((f"offsets of generation {event.generation}, the group is in {group.number}",
                                  [str(group), str(event)]))  # fmt: skip
            case _:
                pass
    return found


@law
def a_key_stays_in_its_partition(case: Case) -> Found:
    """An output stands where murmur2 puts its key among as many partitions as its position says, and that changes never.

    That is for one life of the sink. An epoch may reach the next one before anybody has seen it; it says which it was for.
    """
    found: Found = []
    for p, commits in enumerate(case.commits):
        numbers: dict[str, int] = {}
        for commit in commits:
            sent = [(tp, r) for tp, wrote in commit.transaction.writes.items() if tp.topic == SINK for r in wrote]
            sent = [(tp, r) for tp, r in sent if case.came_from(r, tp) == p]
            sink = commit.position.sinks.get(SINK)
            if sink is None:
                found += [
                    (f"[{p}]: outputs, and its position does not say where they go", [str(commit.transaction)])
                ] * bool(sent)
                continue
            if sink.partitions not in case.history.sink_sizes:
                found.append((f"[{p}]: outputs go over {sink.partitions} partitions, {SINK} never had so many", []))
            before = numbers.setdefault(sink.id, sink.partitions)
            if before != sink.partitions:
                found.append((f"[{p}]: outputs went over {before} partitions, and go over {sink.partitions}", []))
            for tp, record in sent:
                home = partition_of(record.key or b"", sink.partitions)
                if tp.partition != home:
                    what = f"an output of key {record.key!r} of [{p}] stands in {SINK}[{tp.partition}], not in [{home}]"
                    found.append((what, [str(commit.transaction)]))
    return found


@law
def nothing_is_done_of_a_source_that_is_another(case: Case) -> Found:
    """Where keys have moved between partitions, or the topic is another, no commit may be past what was written since."""
    found: Found = []
    for p, taken in enumerate(case.taken):
        at = next((s for s in taken if s.at >= case.history.unsafe_from), None)
        if at is not None and case.ends.get(p, 0) > at.record.offset:
            what = f"{SOURCE}[{p}]@{at.record.offset} was written {at.at - case.history.unsafe_from:.3f} s after no worker could"
            found.append((f"{what} believe that the topic is what it was, and is committed", [str(at.record)]))
    return found


@law
def recovery_ends(case: Case) -> Found:
    """What a crash stopped runs again within its time, and so does everything once all is quiet."""
    late = [r for r in case.history.recoveries if r.ended is None or r.ended - r.begun > r.within_s]
    return [(f"{r.what} at {r.begun:.3f} was not over within {r.within_s:g} s", [f"ended at {r.ended}"]) for r in late]


@law
def state_stays_within_its_bound(case: Case) -> Found:
    """A store holds no mark whose whole bucket has expired, and no row that nothing made."""
    found: Found = []
    if not case.history.exact_time:
        return found
    for store in case.history.stores:
        oracle, _ = case.truth[store.partition]
        horizon = (oracle.stream or 0) - case.history.window_ms
        for bucket, key in store.marks:
            if (bucket + 1) * case.history.bucket_ms <= horizon:
                what = f"{store.worker}'s store of [{store.partition}] keeps the mark of {key.decode()}, long expired"
                found.append((what, [f"bucket {bucket}, stream time {oracle.stream}"]))
        for table, rows in store.rows.items():
            if case.history.stateful and len(rows) > len(oracle.balances):
                found.append((f"{store.worker}'s store of {table}[{store.partition}] has {len(rows)} rows", []))
    return found


@law
def an_output_without_an_event_counts_once(case: Case) -> Found:
    """What its sender was told is committed is there; nothing is there twice; and each sender was told something."""
    found: Found = []
    texts = Counter((r.value or b"").decode() for r in case.written(NOTES, 0))
    found += [(f"the note {text} stands there {times} times", []) for text, times in texts.items() if times > 1]
    for text, told in case.history.notes.items():
        if told is None:
            found.append((f"nobody ever heard of the note {text}", []))
        elif told and not texts[text]:
            found.append((f"the note {text} is lost", []))
    return found


@law
def a_timer_is_sent_once_when_it_is_due(case: Case) -> Found:
    """Each reminder that an event has asked for is sent once, or still pending in the log, as it must be; and no other is. One
    that a later event of its key replaces or cancels is sent before that event, or never."""
    found: Found = []
    sent: dict[tuple[int, int], list[Standing]] = {}
    for _, standing in case.standing(REMINDERS):
        partition, offset, step = records.origin(standing.record)
        if step:
            found.append((f"the reminder of [{partition}]@{offset} says that it is the event's number {step}", []))
        sent.setdefault((partition, offset), []).append(standing)
    for p, (_, effects) in enumerate(case.truth):
        rows: dict[bytes, bytes | None] = {r.key or b"": r.value for r in case.written(f"{case.app}-timers", p)}
        names = [value for row, value in rows.items() if is_name(row) and value is not None]
        rows = {row: value for row, value in rows.items() if not is_name(row)}
        pending = {place_of(row).offset: (place_of(row), value) for row, value in rows.items() if value is not None}
        named = [row for row, value in rows.items() if value is not None and place_of(row).named]
        if sorted(names) != sorted(named):
            found.append((f"[{p}]: names stand for {len(names)} timers, {len(named)} with a name are pending", []))
        wanted = records.reminders_of(effects) if case.history.reminds else {}
        superseded = records.superseded_of(effects)
        for offset in {*pending, *(at for partition, at in sent if partition == p)} - wanted.keys():
            found.append((f"{SOURCE}[{p}]@{offset} asked for no reminder, and has one", []))
        for offset, effect in wanted.items():
            there, where = sent.get((p, offset), []), _at(p, effect)
            due_ms, reminder = records.reminder_of(effect, case.app, SOURCE, p)
            if len(there) + (offset in pending) != 1 and (offset not in superseded or there or offset in pending):
                what = f"{where} was reminded of {len(there)} times, and {'one is' if offset in pending else 'none is'} pending"
                found.append((what, [str(s.record) for s in there]))
            elif offset in pending and offset in superseded:
                found.append((f"the reminder of {where} is pending, and @{superseded[offset]} has ended it", []))
            elif offset in pending and pending[offset][0].due_ms != due_ms:
                found.append((f"the reminder of {where} is due at {pending[offset][0].due_ms}, not at {due_ms}", []))
            elif there and offset in superseded and not _sent_before(case, p, offset, superseded[offset]):
                found.append(
                    (f"the reminder of {where} was sent, and not before @{superseded[offset]} had ended it", [])
                )
            for standing in there:
                if records.written(standing.record) != reminder:
                    found.append((f"the reminder of {where} is {records.written(standing.record)}, not {reminder}", []))
                early_s = due_ms / 1000 - DEFAULT_START - standing.at
                if case.history.exact_time and early_s > 0.001:
                    found.append((f"the reminder of {where} was written {early_s:.3f} s before it was due", []))
        for commit in case.commits[p][-1:]:
            at = commit.position
            counted = sum((p, offset) in sent or offset in pending for offset in wanted)
            if at.timers != len(pending) or sum(at.sent_later.values()) + at.timers != counted:
                what = f"[{p}]: {at.timers} timers are pending by its position and {at.sent_later} were sent"
                found.append((f"{what}, {len(pending)} are by the log, of {counted}", [str(commit.transaction)]))
    return found


def _sent_before(case: Case, partition: int, reminded: int, ending: int) -> bool:
    """Whether a reminder is of an earlier transaction than the output of the event that ended it, where that has one."""
    number = case.transaction_of.get((REMINDERS, partition, reminded), -1)
    return number < case.transaction_of.get((SINK, partition, ending), len(case.transactions))


# ---------------------------------------------------------------------- words


def fold(records: Sequence[MemoryRecord]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for record in records:
        key = (record.key or b"").decode()
        if record.value is None:
            rows.pop(key, None)
        else:
            rows[key] = _json(record)
    return rows


def letter_of(record: MemoryRecord) -> tuple[int, str]:
    said = dict(record.headers)
    return int(said["semel.offset"] or b"-1"), (said["semel.reason"] or b"").decode()


def _json(record: MemoryRecord) -> Any:
    return orjson.loads(record.value or b"null")


def _id(record: MemoryRecord) -> str | None:
    try:
        return orjson.loads(record.value or b"")["id"]
    except (ValueError, TypeError, KeyError):
        return None


def _text(output: dict[str, Any]) -> str:
    return f"{output['id']} ({output['account']}={output['balance']})"


def _numbered(texts: Sequence[str]) -> list[tuple[str, int]]:
    """Each text with how often it came before."""
    times = Counter[str]()
    found: list[tuple[str, int]] = []
    for text in texts:
        found.append((text, times[text]))
        times[text] += 1
    return found


def _at(partition: int, effect: Effect) -> str:
    return f"{SOURCE}[{partition}]@{effect.offset}"


def _holds(t: Transaction, tp: TP, output: str) -> bool:
    return bool(t.outcomes.get(tp)) and any(_text(_json(r)) == output for r in t.writes.get(tp, ()))


def _around(case: Case, partition: int, effect: Effect) -> list[str]:
    """The commit that passed it, if one did."""
    for commit in case.commits[partition]:
        if commit.before <= effect.offset < commit.position.topics[SOURCE].next:
            return [f"passed by the {commit.transaction}"]
    return ["no commit passed it"]


def _difference(found: dict[Any, Any], wanted: dict[Any, Any]) -> str:
    keys = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
    return "; ".join(f"{k!r}: {found.get(k)!r}, not {wanted.get(k)!r}" for k in keys[:5])
