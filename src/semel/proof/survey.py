"""The survey: what there is to be judged. Topics, positions, from where to where each log is to be read, and what is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from semel.plan import Plan
from semel.port import TP, TopicInfo
from semel.proof.cut import Cut, NothingToProve
from semel.proof.logs import Logs
from semel.proof.proof import Findings, Gap
from semel.state.positions import Sink, Windows
from semel.task.declaration_changes import Changes, changes
from semel.task.start_position import check_log_ids, windows_of


@dataclass(frozen=True, slots=True)
class Survey:
    """`since_ms`, `until_ms`: of which events; None for all. `since`, `until`: the offsets that these are, -1 for none.

    `sources`: the source partitions that were read; `outputs`: the partitions that outputs went to; `missing`: topics that
    records went to and that are deleted, with how many. `starts` of all of them, `ends` of what was written. `changed`: what
    of the declaration of today is another, by task.
    """

    plan: Plan
    since_ms: int | None
    until_ms: int | None
    cut: Cut
    topics: Mapping[str, TopicInfo]
    changed: Mapping[int, Changes]
    configs: Mapping[str, Mapping[str, str]]
    missing: Mapping[str, int]
    sources: tuple[TP, ...]
    outputs: tuple[TP, ...]
    starts: Mapping[TP, int]
    ends: Mapping[TP, int]
    since: Mapping[TP, int]
    until: Mapping[TP, int]

    @property
    def offsets(self) -> int:
        """How many are to be read."""
        written = sum(end - self.begins(tp) for tp, end in self.ends.items())
        return written + sum(end - start for start, end in map(self.range, self.sources))

    @property
    def everything(self) -> bool:
        return self.since_ms is None and self.until_ms is None

    @property
    def position_tps(self) -> list[TP]:
        return self.tps(self.plan.positions_topic)

    def tps(self, *names: str) -> list[TP]:
        return _tps(self.topics, *names)

    @property
    def sinks(self) -> dict[str, Sink]:
        """What positions say of the topics, as they are now, that outputs go to.

        Each task goes by its own number of partitions; `least` is below the greatest where the keys of one have moved.
        """
        there: dict[str, list[Sink]] = {}
        for position in self.cut.positions.values():
            for name, sink in position.sinks.items():
                if name in self.topics and self.topics[name].id == sink.id:
                    there.setdefault(name, []).append(sink)
        merged: dict[str, Sink] = {}
        for name, sinks in there.items():
            most = max(sink.partitions for sink in sinks)
            moved = [sink.least for sink in sinks if sink.least < sink.partitions]
            merged[name] = Sink(sinks[0].id, most, min(moved, default=most))
        return merged

    # -- of one log

    def begins(self, tp: TP) -> int:
        """Where a log begins for us: behind what an earlier life of the pipeline, before a reset, left in it."""
        return max(self.starts[tp], self._began(tp))

    def untouched(self, tp: TP) -> bool:
        """Nothing was deleted from a log between where it began for us and our first look at it."""
        return self.starts[tp] <= self._began(tp) and not self.compacted(tp.topic)

    def compacted(self, topic: str) -> bool:
        return "compact" in self.configs.get(topic, {}).get("cleanup.policy", "")

    def _began(self, tp: TP) -> int:
        """Where the last reset left a topic; 0 where there was none, or the topic is another one now."""
        began = self.cut.began.get((tp.topic, self.topics[tp.topic].id), [])
        return began[tp.partition] if tp.partition < len(began) else 0

    # -- of one source partition

    def first(self, tp: TP) -> int:
        """Where the task began; -1 where that was not recorded."""
        return self.cut.positions[tp.partition].topics[tp.topic].first

    def from_the_first(self, tp: TP) -> bool:
        """Whether the range of a source partition begins where the task did."""
        return self.range(tp)[0] == self.first(tp)

    def windows(self, tp: TP) -> Windows | None:
        """From where on the dedup window of today is the judge, and which there were before; None where it always was."""
        position = self.cut.positions[tp.partition]
        at = position.topics[tp.topic]
        if at.windows is None and "window" in position.passed:
            return Windows(at.next, 0, 0)  # a version that did not note more
        return windows_of(at, self.changed[tp.partition].window_ms)

    def range(self, tp: TP) -> tuple[int, int]:
        """Which of its offsets are judged: what was asked for, there, and of today's dedup rule."""
        begin, end = self._asked_for(tp)
        return max(begin, min(end, max(self._rules(tp).values()))), end

    @property
    def of_another_rule(self) -> bool:
        """Whether another dedup rule judged some of what was asked for."""
        return any(self.range(tp)[0] > self._asked_for(tp)[0] for tp in self.sources)

    def _asked_for(self, tp: TP) -> tuple[int, int]:
        cut = self.cut.next(tp)
        begin = max(self.starts[tp], self.first(tp))
        if tp in self.since:
            begin = max(begin, self.since[tp] if self.since[tp] >= 0 else cut)
        until = self.until.get(tp, -1)
        return begin, max(begin, cut if until < 0 else min(cut, until))

    def _rules(self, tp: TP) -> dict[str, int]:
        """From which offset on each part of the dedup rule of today is the judge."""
        windows = self.windows(tp)
        # Declared, and no worker has committed under it: none was judged by it.
        compare = self.changed[tp.partition].compare
        at = self.cut.positions[tp.partition].topics[tp.topic]
        since = {"compare": self.cut.next(tp) if compare else at.hashed_from}
        return since if windows is None else since | {"window": windows.since}

    # -- what nobody can say

    def gaps(self) -> Iterator[Gap]:
        for topic, n in self.missing.items():
            yield Gap(TP(topic, 0), 0, 0, f"the topic is deleted; {n:,} records went there", n)
        for tp in self.sources:
            asked, (begin, end) = self._asked_for(tp)[0], self.range(tp)
            if begin > asked:
                named = " and ".join(sorted(f"{name}=" for name, offset in self._rules(tp).items() if offset > asked))
                yield Gap(
                    tp, asked, begin, f"another {named} of the dedup rule judged these events, so that they cannot be held "
                    "against the rule of today: ask about later ones with --since, or begin anew with `semel reset` or under "
                    "another name; its workers need nothing", begin - asked,
                )  # fmt: skip
            first, start = self.first(tp), self.starts[tp]
            if self.since_ms is None and first < 0 and start > 0:
                yield Gap(tp, 0, start, "where the task began was not recorded by its version")
            elif self.compacted(tp.topic):
                yield Gap(
                    tp, begin, end, "compaction removes events from the source, so that nobody can say whether all of them "
                    "were read",
                )  # fmt: skip
            elif self.since_ms is None and first < start:
                yield Gap(tp, first, start, "retention deleted these events from the source", start - first)


async def survey(logs: Logs, plan: Plan, since_ms: int | None, until_ms: int | None, findings: Findings) -> Survey:
    """NothingToProve, ShapeChanged, TopicChanged; RpcLost where no broker answers."""
    broker, cut = logs.broker, Cut()
    names = [*plan.sources, *plan.logs, plan.dead_letter_topic]
    topics = await logs.asked(lambda: broker.topics(names))
    missing = [name for name in plan.sources if name not in topics]
    if missing:
        raise NothingToProve(
            f"source topic {', '.join(missing)} of {plan.app!r} does not exist on this broker; see the `broker` setting"
        )
    if plan.positions_topic not in topics:
        raise NothingToProve(
            f"{plan.app!r} has never run here: there is no topic {plan.positions_topic!r}; run it, then prove"
        )
    await cut.read(logs, plan, _tps(topics, plan.positions_topic), findings)
    if not cut.positions:
        raise NothingToProve(f"{plan.app!r} has never committed here; run it until it has, then prove")
    changed = _changed(plan, cut, topics)
    sinks = {t.name for t in plan.outputs if t.name not in plan.sources}
    sinks |= {topic for position in cut.positions.values() for topic in position.outputs}
    topics = {**topics, **await logs.asked(lambda: broker.topics(sorted(sinks)))}
    sources = tuple(tp for tp in _tps(topics, *plan.sources) if cut.next(tp) >= 0)
    for tp in sources:
        if cut.positions[tp.partition].topics[tp.topic].id != topics[tp.topic].id:
            raise NothingToProve(
                f"topic {tp.topic!r} was deleted and created again since {plan.app!r} read it: what its positions and "
                "marks speak of is gone. Run `semel reset` to start on the new topic"
            )
    wanted = sorted({*plan.sources, *sinks, plan.dead_letter_topic} & topics.keys())
    configs = await logs.asked(lambda: broker.topic_configs(wanted))
    outputs = tuple(_tps(topics, *sorted(sinks)))
    written = [*outputs, *_tps(topics, plan.marks_topic, plan.dead_letter_topic)]
    return Survey(
        plan, since_ms, until_ms, cut, topics, changed, configs, _missing(plan, cut, topics), sources, outputs,
        starts=await logs.starts([*written, *sources]),
        ends=await logs.ends(written),
        since={} if since_ms is None else await logs.at_time(sources, since_ms),
        until={} if until_ms is None else await logs.at_time(sources, until_ms),
    )  # fmt: skip


def _tps(topics: Mapping[str, TopicInfo], *names: str) -> list[TP]:
    return [TP(n, p) for n in names if n in topics for p in range(topics[n].partitions)]


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


def _missing(plan: Plan, cut: Cut, topics: Mapping[str, TopicInfo]) -> dict[str, int]:
    """Topics that outputs and dead letters went to and that are there no more."""
    written: Counter[str] = Counter()
    for position in cut.positions.values():
        written.update({**position.outputs, plan.dead_letter_topic: position.counts.get("dead", 0)})
    return {topic: n for topic, n in sorted(written.items()) if n and topic not in topics}
