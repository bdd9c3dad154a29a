"""Operator: does with dead letters what was decided, and says so in the audit, in one Kafka transaction for both.

One at a time: its transactional id is one for each pipeline, so that who begins later fences who began before. What was
committed is in the audit, and what was not is nowhere: an operator that was killed neither loses nor doubles a letter, and the
same command again goes on where it stopped.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from semel.broker.answers import Answer
from semel.dead_letters import audit
from semel.dead_letters.audit import Action, Entry, Ledger
from semel.dead_letters.decisions import (
    BATCH_BYTES,
    FORGOTTEN,
    Fates,
    NotReplayable,
    Place,
    Selection,
    batch_letters,
    is_source_of,
    obstacle,
    revision_of,
    skipped,
    unread_by_one,
)
from semel.dead_letters.fates import FateWatch
from semel.dead_letters.letter import Letter, is_of
from semel.dead_letters.reading import LetterReader, NoLetters, Progress
from semel.errors import SemelError
from semel.plan import Plan
from semel.port import NO_TIMESTAMP, TP, Broker, Clock, Record, RpcError, TopicSpec
from semel.runtime import looptime
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.stages.commit.epoch import SealedEpoch, by_partition
from semel.stages.commit.transaction import BATCH_BYTES as MOST_BATCH_BYTES
from semel.stages.commit.transaction import CommitFailed, Writer
from semel.stages.sink.destination import ProducerRecord, limits_from
from semel.state import positions
from semel.state.state_log import KEPT
from semel.task.read_committed import CommittedLogs, Unreadable

# A commit that nobody knows the end of is looked for in the audit, and what is not there is done again, so often.
_TRIES = 5

Make = Callable[[Letter, bytes | None], ProducerRecord | None]


class TakenOver(SemelError):
    """Another command acts on the dead letters of this pipeline."""


class Uncommitted(SemelError):
    """Brokers do not take what is to be written."""


@dataclass(slots=True)
class Done:
    """What came of a command. `skipped`: letters that could not be handled, by reason, with one example each. `late`: replays
    that came back because the dedup window of their events is over."""

    letters: int = 0
    selected: int = 0
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    fates: Fates = field(default_factory=lambda: Fates(0, 0, 0))
    late: int = 0
    stopped: str = ""

    def skip(self, letter: Letter, why: str) -> None:
        count, example = self.skipped.get(why, (0, letter.position))
        self.skipped[why] = count + 1, example


@dataclass(frozen=True, slots=True)
class Why:
    """Who acts, and why."""

    by: str
    reason: str = ""


class Operator:
    """`open` first; then reads see all that was done before, and nobody else does anything meanwhile."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        plan: Plan,
        settings: EngineSettings,
        *,
        failpoints: Failpoints | None = None,
        tell: Progress | None = None,
        logs: CommittedLogs | None = None,
    ) -> None:
        """`logs`: how it reads, where that is not as fast as it can."""
        self.broker = broker
        self.clock = clock
        self.plan = plan
        self.logs = logs or CommittedLogs(broker, clock, "dead letters")
        self.reader = LetterReader(self.logs, plan, tell)
        self._settings = settings
        self._failpoints = failpoints or Failpoints()
        self._writer: Writer | None = None
        self._places: dict[str, Place] = {}
        self._epochs = 0
        self.topic_id = ""
        self.ledger = Ledger("")

    @property
    def audit_topic(self) -> str:
        return self.plan.audit_topic

    # -- reading

    async def read(self, looked_for: str = "") -> bool:
        """Learn what was done so far; whether the entry of this id is among it. NoLetters, UnknownEntry; broker errors."""
        self.topic_id = (await self.reader.topic()).id
        ledger, is_known = Ledger(self.topic_id), False
        async with aclosing(self.entries()) as entries:
            async for entry in entries:
                ledger.add(entry)
                is_known = is_known or entry.id == looked_for
        self.ledger = ledger
        return is_known

    async def entries(self) -> AsyncGenerator[Entry]:
        async with aclosing(self.logs.records(self.audit_topic)) as records:
            async for tp, record in records:
                yield audit.decode(record.value or b"", f"{tp.topic}[{tp.partition}]@{record.offset}")

    async def used_topics(self) -> frozenset[str]:
        """What the pipeline reads and writes: as it is declared, and as its positions have it, where its events have sent
        results, timers and letters. RecoveryError; broker errors."""
        latest: dict[TP, bytes] = {}
        async with aclosing(self.logs.records(self.plan.positions_topic)) as records:
            async for tp, record in records:
                if record.key == positions.KEY and record.value is not None:
                    latest[tp] = record.value
        names = set(self.plan.used_topics)
        for tp, raw in latest.items():
            at = positions.decode(raw, f"{tp.topic}[{tp.partition}]")
            names |= {*at.sinks, *at.outputs, *at.sent_later, *at.logs, *at.letters}
        return frozenset(names)

    async def selected(self, selection: Selection) -> AsyncGenerator[Letter]:
        """The letters that are meant and that nothing was done with yet. RpcError, RpcLost, Unreadable."""
        if selection.at is not None:
            partition, offset = selection.at
            letter = await self.reader.letter(TP(self.plan.dead_letter_topic, partition), offset)
            if not is_of(letter, self.plan.app):
                raise NoLetters(f"{letter.position} is no dead letter of {self.plan.app!r}; see `semel dlq ls`")
            if selection.meets(letter, self.ledger):
                yield letter
            return
        async with aclosing(self.reader.letters()) as letters:
            async for letter in letters:
                if selection.meets(letter, self.ledger):
                    yield letter

    async def value_of(self, letter: Letter) -> bytes | None:
        """Its value; where it was left out, that of its source record. NotReplayable where that is gone."""
        if "semel.left_out" not in letter.own:
            return letter.record.value
        return (await self.source_record(letter)).value

    async def source_record(self, letter: Letter) -> Record:
        """The record that died, where it came from. NotReplayable."""
        tp, offset = TP(letter.text("topic"), letter.number("partition")), letter.number("offset")
        why = "it is not there any more: retention took it, or the topic was made anew"
        try:
            there = await self.logs.asked(lambda: self.broker.topics([tp.topic]))
            info = there.get(tp.topic)
            if info is not None and 0 <= tp.partition < info.partitions:
                start, end = (await self.logs.starts([tp]))[tp], (await self.logs.ends([tp]))[tp]
                if start <= offset < end:
                    async with aclosing(self.logs.read(tp, offset, offset + 1)) as pieces:
                        async for piece in pieces:
                            for record in piece.records:
                                if record.offset == offset and is_source_of(letter, record):
                                    return record
        except (RpcError, Unreadable) as exc:
            why = f"it cannot be read: {exc}"
        raise NotReplayable(
            f"the value of {letter.position} was left out of the letter ({letter.text('left_out')}); it stood at "
            f"{letter.source}, and {why}"
        )

    # -- writing

    async def open(self) -> None:
        """Fence whoever acts on these dead letters, and read what was done. Creates the audit where it is missing."""
        await self.reader.topic()
        await self._make_audit()
        await self._take_writer()
        await self.read()

    async def _make_audit(self) -> None:
        if self.audit_topic in await self.logs.asked(lambda: self.broker.topics([self.audit_topic])):
            return
        three = await self.logs.asked(self.broker.broker_count) >= 3
        factor = self._settings.replication_factor or (3 if three else 1)
        safe = {"min.insync.replicas": "2" if factor >= 3 else "1", "unclean.leader.election.enable": "false"}
        spec = TopicSpec(self.audit_topic, 1, factor, {"cleanup.policy": "delete", **KEPT, **safe})
        await self.logs.asked(lambda: self.broker.create_topics([spec]))
        until = looptime.now() + self._settings.rebalance_timeout_ms / 1000
        while self.audit_topic not in await self.logs.asked(lambda: self.broker.topics([self.audit_topic])):
            if looptime.now() > until:
                raise Uncommitted(f"the topic {self.audit_topic!r} was created, and no broker shows it; try again")
            await self.clock.sleep(0.05)

    async def _take_writer(self) -> None:
        settings = self._settings
        self._writer = Writer(
            self.broker, self.clock, self._failpoints, self.plan.dead_letter_writer,
            timeout_ms=settings.transaction_timeout_ms, commit_timeout_ms=settings.commit_timeout_ms,
            max_batch_bytes=lambda topic: self._places[topic].limits.max_bytes if topic in self._places else MOST_BATCH_BYTES,
        )  # fmt: skip
        await self._writer.init(until=looptime.now() + settings.commit_timeout_ms / 1000 * 3)

    async def commit(self, entry: Entry, records: Sequence[ProducerRecord]) -> dict[TP, int]:
        """Write records and what the audit says of them, both or neither. Where the records begin, by partition.

        TakenOver, also where another command has acted since the last look; Uncommitted where brokers do not take it.
        """
        known = self.ledger.entries
        out = ProducerRecord(TP(self.audit_topic, 0), NO_TIMESTAMP, entry.action.encode(), entry.encode(), ())
        for attempt in range(1, _TRIES + 1):
            assert self._writer is not None, "the operator is not open"
            self._epochs += 1
            epoch = SealedEpoch(self._epochs, by_partition([*records, out]), {})
            try:
                await self._writer.commit(epoch, None)
            except CommitFailed as exc:
                if exc.answer is Answer.FENCED:
                    raise self._taken_over() from exc
                if exc.answer in (Answer.RECORD, Answer.TOPIC) or attempt == _TRIES:
                    raise Uncommitted(f"not written, and nothing of it is done: {exc.cause}") from exc
                await self._take_writer()
                # The transaction has ended by now, in one way or the other.
                if await self.read(entry.id):
                    return {}
                if self.ledger.entries != known:
                    # Its writer's id was taken back from somebody who may have done the same letters.
                    raise self._taken_over() from exc
            else:
                self.ledger.add(entry)
                return dict(epoch.base_offsets)
        raise AssertionError

    def _taken_over(self) -> TakenOver:
        return TakenOver(
            f"another `semel dlq` acts on the dead letters of {self.plan.app!r} since: this one has stopped, and what it had not "
            "committed is not done; wait for the other, then run the same command again"
        )

    def entry(
        self, action: Action, why: Why, letters: Sequence[Letter], *, revisions: bool = False, **more: Any
    ) -> Entry:
        return Entry(
            action, int(self.clock.time() * 1000), why.by, why.reason, self.plan.dead_letter_topic, self.topic_id,
            audit.touched((letter, revision_of(letter) + 1 if revisions else 0) for letter in letters),
            audit.groups_of(letters), more, uuid.uuid4().hex,
        )  # fmt: skip

    async def place(self, topic: str) -> Place | None:
        """A topic that is written to, as it is; None where there is none."""
        if topic not in self._places:
            info = (await self.logs.asked(lambda: self.broker.topics([topic]))).get(topic)
            if info is None:
                return None
            configs = await self.logs.asked(lambda: self.broker.topic_configs([topic]))
            self._places[topic] = Place(info.partitions, limits_from(configs[topic]))
        return self._places[topic]

    # -- many letters

    async def write_all(
        self, action: Action, selection: Selection, why: Why, make: Make, *, rate: float = 0, fates: FateWatch | None = None,
        keep_going: bool = False, value_needed: bool = True, told: Callable[[Done], None] = lambda done: None, **more: Any,
    ) -> Done:  # fmt: skip
        """Each letter that is meant becomes what `make` says, a batch a transaction, `rate` of them a second (0: as many as there
        can be). `fates`: stop where most come back."""
        done = Done()
        began = self.clock.monotonic()
        batch: list[tuple[Letter, ProducerRecord]] = []
        skips: list[ProducerRecord] = []
        held = 0

        async def flush() -> None:
            nonlocal held
            letters = [letter for letter, _ in batch]
            records = [record for _, record in batch]
            entry = self.entry(action, why, letters, revisions=action in ("replay", "edit"), **more)
            offsets = await self.commit(entry, [*records, *skips])
            done.letters += len(batch)
            skips.clear()
            if fates is not None:
                fates.sent(records, offsets)
            batch.clear()
            held = 0
            told(done)

        async with aclosing(self.selected(selection)) as letters:
            async for letter in letters:
                done.selected += 1
                if self.ledger.is_forgotten(letter):
                    done.skip(letter, FORGOTTEN)
                    continue
                try:
                    value = await self.value_of(letter) if value_needed else None
                    record = make(letter, value)
                except NotReplayable as exc:
                    done.skip(letter, str(exc))
                    continue
                if record is None:
                    continue
                put_back = record.tp.topic == letter.text("topic") and action != "redirect"
                why_not = unread_by_one(self.plan, record.tp.topic) if put_back else ""
                why_not = why_not or obstacle(record, await self.place(record.tp.topic), int(self.clock.time() * 1000))
                if why_not:
                    done.skip(letter, why_not)
                    continue
                if batch and held + record.size > BATCH_BYTES:
                    await flush()
                if action == "redirect":
                    try:
                        skip = await self._skip(letter, value)
                    except NotReplayable as exc:
                        done.skip(letter, str(exc))
                        continue
                    skips += [] if skip is None else [skip]
                    held += 0 if skip is None else skip.size
                batch.append((letter, record))
                held += record.size
                if len(batch) >= batch_letters(done.letters, rate):
                    first = not done.letters
                    await flush()
                    if fates is not None and keep_going:
                        await fates.look()
                    elif fates is not None:
                        done.stopped = await fates.verdict(wait=first)
                        if done.stopped:
                            break
                    if rate > 0:
                        await self.clock.sleep(max(0.0, began + done.letters / rate - self.clock.monotonic()))
        if batch and not done.stopped:
            await flush()
        if fates is not None:
            if not done.stopped:
                done.stopped = await fates.verdict(wait=True, last=True)
            done.fates, done.late = fates.fates, fates.late
        return done

    async def mark_all(
        self, action: Action, selection: Selection, why: Why, told: Callable[[Done], None] = lambda done: None, **more: Any
    ) -> Done:  # fmt: skip
        """Note what is done with letters, without a record of them but for what lets the keys go on that they hold."""
        done = Done()
        batch: list[Letter] = []
        skips: list[ProducerRecord] = []
        held = 0
        async with aclosing(self.selected(selection)) as letters:
            async for letter in letters:
                done.selected += 1
                try:
                    skip = await self._skip(letter, None if action == "forget" else letter.record.value)
                except NotReplayable as exc:
                    done.skip(letter, str(exc))
                    continue
                # What it carries is not needed else, and may be large.
                batch.append(letter.with_value(None))
                skips += [] if skip is None else [skip]
                held += 0 if skip is None else skip.size
                if len(batch) == audit.ENTRY_LETTERS or held > BATCH_BYTES:
                    await self.commit(self.entry(action, why, batch, **more), skips)
                    done.letters += len(batch)
                    batch, skips, held = [], [], 0
                    told(done)
        if batch:
            await self.commit(self.entry(action, why, batch, **more), skips)
            done.letters += len(batch)
        return done

    async def _skip(self, letter: Letter, value: bytes | None) -> ProducerRecord | None:
        """What lets its key go on without its event, if it holds that. NotReplayable where its source does not take it."""
        record = skipped(letter, value)
        if record is None:
            return None
        place, now_ms = await self.place(record.tp.topic), int(self.clock.time() * 1000)
        if place is None or record.tp.partition >= place.partitions:
            # Nothing waits for it: its source is another one, which nobody reads before a reset.
            return None
        if obstacle(record, place, now_ms):
            # What it carries is for others; what it says is in its headers.
            record = skipped(letter, None)
        why_not = obstacle(record, place, now_ms) if record is not None else ""
        if why_not:
            raise NotReplayable(
                f"it holds its key, which goes on by a record in {letter.text('topic')!r} only: {why_not}"
            )
        return record

    async def watch(self, wait_s: float) -> FateWatch:
        """Of what is replayed from now on. `wait_s`: for so long a worker is waited for that takes it."""
        fates = FateWatch(self.reader, self.logs, self.clock, self.plan.app, self.plan.parked_topic, wait_s=wait_s)
        await fates.begin()
        return fates

    async def ends(self) -> dict[int, int]:
        """Where the dead-letter topic ends now, open transactions included."""
        return {tp.partition: end for tp, end in (await self.logs.ends(await self.reader.partitions())).items()}
