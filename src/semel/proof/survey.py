"""The survey: what there is to be judged. Topics, positions, from where to where each log is to be read, and what is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from semel.plan import Plan
from semel.port import TP, Broker, TopicInfo
from semel.proof.cut import Cut, NothingToProve
from semel.proof.findings import Findings, Gap
from semel.proof.logs import Logs
from semel.runtime.changed import Changes, changes
from semel.runtime.decide import check_log_ids, windows_of
from semel.state.positions import Sink, Windows


class Survey:
    """`since_ms`, `until_ms`: of which events; None for all.

    `sources`: the source partitions that were read; `outputs`: the partitions that outputs went to; `missing`: topics that
    records went to and that are deleted, with how many. `starts` of all of them, `ends` of what was written. `range`: which
    offsets of a source partition are judged. `of_another_rule`: where another dedup rule judged of what was asked for.
    """

    def __init__(
        self, broker: Broker, logs: Logs, plan: Plan, since_ms: int | None = None, until_ms: int | None = None
    ) -> None:
        self.cut = Cut()
        self.sources: list[TP] = []
        self.outputs: list[TP] = []
        self.missing: dict[str, int] = {}
        self.starts: dict[TP, int] = {}
        self.ends: dict[TP, int] = {}
        self.range: dict[TP, tuple[int, int]] = {}
        self.of_another_rule: set[TP] = set()
        self.gaps: list[Gap] = []
        self._broker = broker
        self._logs = logs
        self._plan = plan
        self._since, self._until = since_ms, until_ms
        self._topics: dict[str, TopicInfo] = {}
        self._configs: dict[str, dict[str, str]] = {}
        self._rules: dict[int, Changes] = {}

    async def look(self, findings: Findings, read: Callable[[int], None]) -> None:
        """NothingToProve, ShapeChanged, TopicChanged; RpcLost where no broker answers."""
        plan = self._plan
        names = [*plan.sources, *plan.logs, plan.dead_letter_topic]
        self._topics = await self._logs.asked(lambda: self._broker.topics(names))
        missing = [name for name in plan.sources if name not in self._topics]
        if missing:
            raise NothingToProve(
                f"source topic {', '.join(missing)} of {plan.app!r} does not exist on this broker; see the `broker` setting"
            )
        if plan.positions_topic not in self._topics:
            raise NothingToProve(
                f"{plan.app!r} has never run here: there is no topic {plan.positions_topic!r}; run it, then prove"
            )
        await self.cut.read(self._logs, plan, self.position_tps, findings, read)
        if not self.cut.positions:
            raise NothingToProve(f"{plan.app!r} has never committed here; run it until it has, then prove")
        self._check_declaration()
        outputs: set[str] = {t.name for t in plan.outputs if t.name not in plan.sources}
        outputs |= {topic for position in self.cut.positions.values() for topic in position.outputs}
        self._topics |= await self._logs.asked(lambda: self._broker.topics(sorted(outputs)))
        self._see_missing()
        self.outputs = [
            TP(n, p) for n in sorted(outputs & self._topics.keys()) for p in range(self._topics[n].partitions)
        ]
        self.sources = [tp for tp in self.tps(*plan.sources) if self.cut.next(tp) >= 0]
        for tp in self.sources:
            recorded = self.cut.positions[tp.partition].topics[tp.topic]
            if recorded.id != self._topics[tp.topic].id:
                raise NothingToProve(
                    f"topic {tp.topic!r} was deleted and created again since {plan.app!r} read it: what its positions and "
                    "marks speak of is gone. Run `semel reset` to start on the new topic"
                )
        wanted = sorted({*plan.sources, *outputs, plan.dead_letter_topic} & self._topics.keys())
        self._configs = await self._logs.asked(lambda: self._broker.topic_configs(wanted))
        written = [*self.outputs, *self.tps(plan.marks_topic, plan.dead_letter_topic)]
        self.starts = await self._logs.starts([*written, *self.sources])
        self.ends = await self._logs.ends(written)
        await self._find_range()

    @property
    def offsets(self) -> int:
        """How many are to be read."""
        written = sum(end - self.begins(tp) for tp, end in self.ends.items())
        return written + sum(end - start for start, end in self.range.values())

    @property
    def everything(self) -> bool:
        return self._since is None and self._until is None

    def tps(self, *names: str) -> list[TP]:
        return [TP(n, p) for n in names if n in self._topics for p in range(self._topics[n].partitions)]

    @property
    def sinks(self) -> dict[str, Sink]:
        """What positions say of the topics, as they are now, that outputs go to.

        Each task goes by its own number of partitions; `least` is below the greatest where the keys of one have moved.
        """
        there: dict[str, list[Sink]] = {}
        for position in self.cut.positions.values():
            for name, sink in position.sinks.items():
                if name in self._topics and self._topics[name].id == sink.id:
                    there.setdefault(name, []).append(sink)
        found: dict[str, Sink] = {}
        for name, sinks in there.items():
            most = max(sink.partitions for sink in sinks)
            moved = [sink.least for sink in sinks if sink.least < sink.partitions]
            found[name] = Sink(sinks[0].id, most, min(moved, default=most))
        return found

    @property
    def position_tps(self) -> list[TP]:
        return self.tps(self._plan.positions_topic)

    def begins(self, tp: TP) -> int:
        """Where a log begins for us: behind what an earlier life of the pipeline, before a reset, left in it."""
        return max(self.starts[tp], self._began(tp))

    def first(self, tp: TP) -> int:
        """Where the task began; -1 where that was not recorded."""
        return self.cut.positions[tp.partition].topics[tp.topic].first

    def from_the_first(self, tp: TP) -> bool:
        """Whether the range of a source partition begins where the task did."""
        return self.range[tp][0] == self.first(tp)

    def compacted(self, topic: str) -> bool:
        return "compact" in self._configs.get(topic, {}).get("cleanup.policy", "")

    def untouched(self, tp: TP) -> bool:
        """Nothing was deleted from a log between where it began for us and our first look at it."""
        return self.starts[tp] <= self._began(tp) and not self.compacted(tp.topic)

    def windows(self, tp: TP) -> Windows | None:
        """From where on the dedup window of today is the judge, and which there were before; None where it always was."""
        position = self.cut.positions[tp.partition]
        at = position.topics[tp.topic]
        if at.windows is None and "window" in position.passed:
            return Windows(at.next, 0, 0)  # a version that did not note more
        return windows_of(at, self._rules[tp.partition].window_ms)

    # -- inside

    def _behind_other_rules(self, tp: TP, begin: int, end: int) -> int:
        """Where the dedup rule of today begins to be the judge, of a range; a gap before it."""
        position, changed = self.cut.positions[tp.partition], self._rules[tp.partition]
        at = position.topics[tp.topic]
        windows = self.windows(tp)
        # Declared, and no worker has committed under it: none was judged by it.
        since = {"compare": self.cut.next(tp) if changed.compare else at.hashed_from}
        if windows is not None:
            since["window"] = windows.since
        named = sorted(name for name, offset in since.items() if offset > begin)
        behind = min(end, max(since.values()))
        if behind <= begin:
            return begin
        self.of_another_rule.add(tp)
        self.gaps.append(Gap(
            tp, begin, behind, f"another {' and '.join(f'{name}=' for name in named)} of the dedup rule judged these events, so "
            "that they cannot be held against the rule of today: ask about later ones with --since, or begin anew with "
            "`semel reset` or under another name; its workers need nothing", behind - begin,
        ))  # fmt: skip
        return behind

    def _check_declaration(self) -> None:
        """Whether counts and marks are what the declaration of today reads and makes. ShapeChanged, TopicChanged, too."""
        plan, types, marks = self._plan, self._plan.types(), self._plan.marks_topic
        others: set[str] = set()
        for task, position in self.cut.positions.items():
            # As a worker takes it, which may not have committed since.
            changed = changes(plan, position, types)
            others |= set(position.readers) - plan.readers
            self._rules[task] = changed
            if marks in position.logs:
                if marks not in self._topics:
                    raise NothingToProve(
                        f"topic {marks!r} is deleted: nothing says which events of {plan.app!r} took effect. Its workers will "
                        "not run either; `semel reset` begins anew"
                    )
                check_log_ids(plan.app, {marks: position.logs[marks]}, self._topics)
        if others:
            raise NothingToProve(
                f"{plan.app!r} took in events of {', '.join(sorted(others))} under an earlier declaration, and its counts and "
                "marks are of those, too: they cannot be held against the topics that it reads now. Run `semel reset` to begin "
                "anew, or give what was changed a name of its own"
            )

    def _see_missing(self) -> None:
        """Topics that outputs and dead letters went to and that are there no more."""
        written: Counter[str] = Counter()
        for position in self.cut.positions.values():
            written.update({**position.outputs, self._plan.dead_letter_topic: position.counts.get("dead", 0)})
        self.missing = {topic: n for topic, n in sorted(written.items()) if n and topic not in self._topics}
        for topic, n in self.missing.items():
            self.gaps.append(Gap(TP(topic, 0), 0, 0, f"the topic is deleted; {n:,} records went there", n))

    def _began(self, tp: TP) -> int:
        """Where the last reset left a topic; 0 where there was none, or the topic is another one now."""
        began = self.cut.began.get((tp.topic, self._topics[tp.topic].id), [])
        return began[tp.partition] if tp.partition < len(began) else 0

    async def _find_range(self) -> None:
        since = await self._logs.at_time(self.sources, self._since) if self._since is not None else {}
        until = await self._logs.at_time(self.sources, self._until) if self._until is not None else {}
        for tp in self.sources:
            cut, first = self.cut.next(tp), self.first(tp)
            begin = max(self.starts[tp], first)
            if tp in since:
                begin = max(begin, since[tp] if since[tp] >= 0 else cut)
            end = cut if until.get(tp, -1) < 0 else min(cut, until[tp])
            end = max(begin, end)
            begin = self._behind_other_rules(tp, begin, end)
            self.range[tp] = begin, end
            if self._since is None and first < 0 and self.starts[tp] > 0:
                self.gaps.append(Gap(tp, 0, self.starts[tp], "where the task began was not recorded by its version"))
            elif self.compacted(tp.topic):
                self.gaps.append(Gap(
                    tp, begin, max(begin, end), "compaction removes events from the source, so that nobody can say whether "
                    "all of them were read",
                ))  # fmt: skip
            elif self._since is None and first < self.starts[tp]:
                self.gaps.append(Gap(
                    tp, first, self.starts[tp], "retention deleted these events from the source",
                    self.starts[tp] - first,
                ))  # fmt: skip
