"""The survey: what there is to be judged. Topics, positions, from where to where each log is to be read, and what is gone.

The position records of every task are read first: whatever is judged lies below them, the cut. Read again at the end, they
bound what may have been committed meanwhile. On the way every one that is still there is held against the ones before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import orjson

from semel.errors import SemelError
from semel.plan import Plan
from semel.port import TP, Record, TopicInfo
from semel.proof import laws
from semel.proof.logs import Logs
from semel.proof.outcomes import Rule
from semel.proof.proof import Gap, Remarks
from semel.state import positions
from semel.state.positions import Position, PositionLog, Windows
from semel.task.declaration_changes import Changes, changes
from semel.task.start_position import windows_of
from semel.task.topic_identity import check_log_ids


class NothingToProve(SemelError):
    """The pipeline has never run here, is being reset, or its topics are not there."""


@dataclass(slots=True)
class Cut:
    """`began`: where topics, by name and id, ended when `semel reset` was run last. `records`: how many positions were read."""

    began: dict[tuple[str, str], list[int]] = field(default_factory=dict[tuple[str, str], list[int]])
    records: int = 0
    _logs: dict[TP, PositionLog] = field(default_factory=dict[TP, PositionLog])
    _read_to: dict[TP, int] = field(default_factory=dict[TP, int])
    _recent: dict[TP, list[tuple[int, Position]]] = field(default_factory=dict[TP, list[tuple[int, Position]]])

    @property
    def positions(self) -> dict[int, Position]:
        """By task."""
        return {tp.partition: log.position for tp, log in self._logs.items() if log.position is not None}

    async def read(self, logs: Logs, plan: Plan, tps: list[TP], remarks: Remarks) -> None:
        """Read on to the ends as they are now. NothingToProve while a reset is under way."""
        ends, starts = await logs.ends(tps), await logs.starts(tps)
        for tp in tps:
            async for piece in logs.read(tp, max(self._read_to.get(tp, 0), starts[tp]), ends[tp]):
                for record in piece.records:
                    self._see(tp, record, remarks)
            self._read_to[tp] = ends[tp]
        if any(log.resetting for log in self._logs.values()):
            raise NothingToProve(
                f"{plan.positions_topic} says that a reset of {plan.app!r} is under way or was broken off; run `semel reset` "
                "again, then prove"
            )

    def _see(self, tp: TP, record: Record, remarks: Remarks) -> None:
        position = self._logs.setdefault(tp, PositionLog()).see(record, tp)
        if position is not None:
            self.records += 1
            recent = self._recent[tp] = [*self._recent.get(tp, [])[-2:], (record.offset, position)]
            if len(recent) > 1:
                remarks.add(laws.position_never_back(tp, record.offset, recent[-2][1], position))
            if len(recent) > 2:
                at, late = recent[1]
                remarks.add(laws.fenced_writes_nothing(tp, at, recent[0][1], late, position))
        elif record.key == positions.KEY:
            self._recent.pop(tp, None)
        elif record.key == positions.BEGAN_KEY and record.value is not None:
            told: dict[str, Any] = orjson.loads(record.value)
            self.began = {(name, at["id"]): [int(end) for end in at["ends"]] for name, at in told["topics"].items()}

    def next(self, tp: TP) -> int:
        """How far the last of the agents has come in a source partition; -1 where none ever was."""
        return max(self.by_agent(tp).values(), default=-1)

    def by_agent(self, tp: TP) -> dict[str, int]:
        """How far each agent has come; those that are no further than the common position go by ''."""
        position = self.positions.get(tp.partition)
        at = position.topics.get(tp.topic) if position is not None else None
        return {} if at is None else {"": at.next, **at.cursors}


@dataclass(frozen=True, slots=True)
class Range:
    """What is judged of one source partition: its offsets from `start` to `end` (exclusive).

    `first`: where the task began; -1 where that was not recorded. `asked`: where what was asked for, and is there, begins;
    what lies between it and `start` was judged by another dedup rule, of which `changed` names the parts. `rule`: as it
    judged these events; None without dedup.
    """

    first: int
    asked: int
    start: int
    end: int
    changed: str
    rule: Rule | None

    @property
    def from_the_first(self) -> bool:
        return self.start == self.first


@dataclass(frozen=True, slots=True)
class Survey:
    """`everything`: no range of time was asked for. `compacted`, `missing`: topics; those that records went to and that are
    deleted. `sources`: the source partitions that were read. `outputs`, `letters`, `marks`: the partitions that these went
    to. `starts`: where each log begins for us; `ends` of what was written; `untouched`: the logs of outputs and dead letters
    to. `starts`: where each log begins for us; `ends` of what was written; `untouched`: the logs of outputs and dead letters
    from which nothing was deleted before we first looked at them. `parked_ends`: of the logs of parked events, `timer_ends`: of
    timers, both before `ends`; `timer_begins`: where those ended before the positions were read.
    """

    plan: Plan
    everything: bool
    cut: Cut
    topics: Mapping[str, TopicInfo]
    compacted: frozenset[str]
    missing: Set[str]
    sources: Mapping[TP, Range]
    outputs: tuple[TP, ...]
    letters: tuple[TP, ...]
    marks: tuple[TP, ...]
    letter_topics: frozenset[str]
    starts: Mapping[TP, int]
    ends: Mapping[TP, int]
    untouched: frozenset[TP]
    parked_ends: Mapping[TP, int]
    timer_ends: Mapping[TP, int]
    timer_begins: Mapping[TP, int]


def partitions(topics: Mapping[str, TopicInfo], *names: str) -> list[TP]:
    """Of those of the topics that are there."""
    return [TP(n, p) for n in names if n in topics for p in range(topics[n].partitions)]


async def survey(logs: Logs, plan: Plan, since_ms: int | None, until_ms: int | None, remarks: Remarks) -> Survey:
    """NothingToProve, ShapeChanged, TopicChanged; RpcLost where no broker answers."""
    broker, cut = logs.broker, Cut()
    topics = await logs.asked(lambda: broker.topics([*plan.sources, *plan.logs]))
    missing = [name for name in plan.sources if name not in topics]
    if missing:
        raise NothingToProve(
            f"source topic {', '.join(missing)} of {plan.app!r} does not exist on this broker; see the `broker` setting"
        )
    if plan.positions_topic not in topics:
        raise NothingToProve(
            f"{plan.app!r} has never run here: there is no topic {plan.positions_topic!r}; run it, then prove"
        )
    timer_begins = await logs.ends(partitions(topics, plan.timers_topic))
    await cut.read(logs, plan, partitions(topics, plan.positions_topic), remarks)
    if not cut.positions:
        raise NothingToProve(f"{plan.app!r} has never committed here; run it until it has, then prove")
    # Before the ends of what they led to: what is not parked there any more has led to it by then, and a timer is sent.
    parked_ends = await logs.ends(partitions(topics, plan.parked_topic))
    timer_ends = await logs.ends(partitions(topics, plan.timers_topic))
    changed = _changed(plan, cut, topics)
    sinks = {t.name for t in plan.outputs if t.name not in plan.sources}
    for position in cut.positions.values():
        # Where a timer sends to that is sent meanwhile, its position says, too.
        sinks |= {*position.outputs, *(position.sinks if position.timers or position.sent_later else ())}
    letter_topics = _letter_topics(plan, cut)
    topics = {**topics, **await logs.asked(lambda: broker.topics(sorted({*sinks, *letter_topics})))}
    sources = [tp for tp in partitions(topics, *plan.sources) if cut.next(tp) >= 0]
    for tp in sources:
        if cut.positions[tp.partition].topics[tp.topic].id != topics[tp.topic].id:
            raise NothingToProve(
                f"topic {tp.topic!r} was deleted and created again since {plan.app!r} read it: what its positions and "
                "marks speak of is gone. Run `semel reset` to start on the new topic"
            )
    wanted = sorted({*plan.sources, *sinks, *letter_topics} & topics.keys())
    configs = await logs.asked(lambda: broker.topic_configs(wanted))
    compacted = frozenset(name for name, config in configs.items() if "compact" in config.get("cleanup.policy", ""))
    outputs, letters, marks = (
        tuple(partitions(topics, *names)) for names in (sorted(sinks), sorted(letter_topics), [plan.marks_topic])
    )
    written = [*outputs, *letters, *marks]
    starts, ends = await logs.starts([*written, *sources]), await logs.ends(written)
    since = {} if since_ms is None else await logs.at_time(sources, since_ms)
    until = {} if until_ms is None else await logs.at_time(sources, until_ms)
    missing = _missing(plan, cut, topics)
    for topic, n in missing.items():
        remarks.add([Gap(TP(topic, 0), 0, 0, f"the topic is deleted; {n:,} records went there", n)])
    ranges: dict[TP, Range] = {}
    for tp in sources:
        ranges[tp] = _range(plan, cut, tp, changed[tp.partition], starts[tp], since.get(tp), until.get(tp))
        remarks.add(_gaps(tp, ranges[tp], starts[tp], whole=since_ms is None, compacted=tp.topic in compacted))
    # What an earlier life of the pipeline, before a reset, left in them is none of ours.
    began = {tp: _began(cut, tp, topics[tp.topic].id) for tp in [*outputs, *letters]}
    return Survey(
        plan, since_ms is None and until_ms is None, cut, topics, compacted, missing.keys(), ranges, outputs, letters, marks,
        letter_topics,
        starts=starts | {tp: max(at, starts[tp]) for tp, at in began.items()},
        ends=ends,
        untouched=frozenset(tp for tp, at in began.items() if starts[tp] <= at and tp.topic not in compacted),
        parked_ends=parked_ends,
        timer_ends=timer_ends,
        timer_begins=timer_begins,
    )  # fmt: skip


def _began(cut: Cut, tp: TP, topic_id: str) -> int:
    """Where the last reset left a log; 0 where there was none, or the topic is another one now."""
    ends = cut.began.get((tp.topic, topic_id), [])
    return ends[tp.partition] if tp.partition < len(ends) else 0


def _changed(plan: Plan, cut: Cut, topics: Mapping[str, TopicInfo]) -> dict[int, Changes]:
    """Whether counts and marks are what the declaration of today reads and makes. ShapeChanged, TopicChanged, too."""
    types, marks = plan.types(), plan.marks_topic
    others: set[str] = set()
    changed: dict[int, Changes] = {}
    for task, position in cut.positions.items():
        # As a worker takes it, which may not have committed since.
        changed[task] = changes(plan, position, types)
        others |= set(position.readers) - plan.readers
        if marks in position.logs:
            if marks not in topics:
                raise NothingToProve(
                    f"topic {marks!r} is deleted: nothing says which events of {plan.app!r} took effect. Its workers will "
                    "not run either; `semel reset` begins anew"
                )
            check_log_ids(plan.app, {marks: position.logs[marks]}, topics)
    if others:
        raise NothingToProve(
            f"{plan.app!r} took in events of {', '.join(sorted(others))} under an earlier declaration, and its counts and "
            "marks are of those, too: they cannot be held against the topics that it reads now. Run `semel reset` to begin "
            "anew, or give what was changed a name of its own"
        )
    return changed


def _letter_topics(plan: Plan, cut: Cut) -> frozenset[str]:
    """Every topic that dead letters were to go to, by the declarations so far; what other pipelines put there is not read."""
    return frozenset(name for position in cut.positions.values() for name in plan.letters_of(position.letters))


def _missing(plan: Plan, cut: Cut, topics: Mapping[str, TopicInfo]) -> dict[str, int]:
    """Topics that outputs and dead letters went to and that are there no more, with how many."""
    written: Counter[str] = Counter()
    for position in cut.positions.values():
        # Where they were to go to several, nobody knows how many went to which.
        dead = position.counts.get("dead", 0)
        written.update({topic: n for topic, n in position.sent_later.items() if topic})
        written.update({**position.outputs, **dict.fromkeys(plan.letters_of(position.letters), dead)})
    return {topic: n for topic, n in sorted(written.items()) if n and topic not in topics}


# -- of one source partition


def _range(
    plan: Plan, cut: Cut, tp: TP, changed: Changes, log_start: int, since: int | None, until: int | None
) -> Range:
    """`since`, `until`: offsets, -1 where nothing is stamped so late; None where all was asked for."""
    position, cut_at = cut.positions[tp.partition], cut.next(tp)
    at = position.topics[tp.topic]
    asked = max(log_start, at.first, cut_at if since == -1 else since or 0)
    end = max(asked, cut_at if until is None or until < 0 else min(cut_at, until))
    # Of a version that did not note when nothing more is known.
    unnoted = at.windows is None and "window" in position.passed
    windows = Windows(at.next, 0, 0) if unnoted else windows_of(at, changed.window_ms)
    # From where on each part of the dedup rule of today is the judge. Where it is declared, and no worker has committed under
    # it, none was judged by it.
    judges = {"compare": cut_at if changed.compare else at.hashed_from, "window": windows.since if windows else 0}
    return Range(
        first=at.first,
        asked=asked,
        start=max(asked, min(end, max(judges.values()))),
        end=end,
        changed=" and ".join(sorted(f"{name}=" for name, offset in judges.items() if offset > asked)),
        rule=_rule(plan, position, tp, windows),
    )


def _rule(plan: Plan, position: Position, tp: TP, windows: Windows | None) -> Rule | None:
    dedup = plan.dedup
    if dedup is None:
        return None
    hashed_from = position.topics[tp.topic].hashed_from
    rule = Rule(dedup.window_ms, dedup.bucket_ms, dedup.missing, dedup.conflict, dedup.late, hashed_from=hashed_from)
    # What an earlier declaration let pass took effect without a mark, and still has its outputs.
    passed = position.passed
    rule = rule._replace(**{name: "pass" for name in ("missing", "conflict", "late") if name in passed})
    if windows is None:
        return rule
    # Marks were trimmed by whole buckets, of a quarter of the window of then.
    bucket_ms = max(rule.bucket_ms, windows.most_ms // 4)
    return rule._replace(since=windows.since, least_ms=windows.least_ms, bucket_ms=bucket_ms)


def _gaps(tp: TP, judged: Range, log_start: int, *, whole: bool, compacted: bool) -> Iterator[Gap]:
    """What nobody can say of the events of a source partition. `whole`: of all from the first one on."""
    first, asked, start = judged.first, judged.asked, judged.start
    if start > asked:
        yield Gap(
            tp, asked, start, f"another {judged.changed} of the dedup rule judged these events, so that they cannot be held "
            "against the rule of today: ask about later ones with --since, or begin anew with `semel reset` or under "
            "another name; its workers need nothing", start - asked,
        )  # fmt: skip
    if whole and first < 0 and log_start > 0:
        yield Gap(tp, 0, log_start, "where the task began was not recorded by its version")
    elif compacted:
        yield Gap(
            tp, start, judged.end, "compaction removes events from the source, so that nobody can say whether all of them "
            "were read",
        )  # fmt: skip
    elif whole and first < log_start:
        yield Gap(tp, first, log_start, "retention deleted these events from the source", log_start - first)
