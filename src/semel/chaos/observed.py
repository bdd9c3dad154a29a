"""How the pipeline is doing, by what its workers say over HTTP; pure data, fed with their `/pipelines` documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from semel.chaos.timeline import Bites
from semel.local.watch import Document, Watch, WorkerState


@dataclass(slots=True)
class Observed:
    """`hear` and `gone` keep it true; times are the caller's, in seconds."""

    topic: str
    partitions: int
    watch: Watch = field(init=False)
    heard_at: dict[str, float] = field(default_factory=dict[str, float])
    # Of each process, also of those that are gone, the last that it said.
    _last: dict[tuple[str, int], Document] = field(default_factory=dict[tuple[str, int], Document])
    _duplicates: int = 0

    def __post_init__(self) -> None:
        self.watch = Watch(self.topic, self.partitions)

    def meet(self, name: str, url: str, pid: int) -> None:
        """A process was started under this name."""
        self.watch.workers[name] = WorkerState(name, url, pid)
        self.heard_at.pop(name, None)

    def hear(self, name: str, pid: int, document: Document, now: float) -> None:
        """Its document, asked for at `now`."""
        self.watch.hear(name, document)
        self.heard_at[name] = now
        self._last[name, pid] = document
        self._duplicates = max(self._duplicates, document["counts"].get("duplicates", 0))

    def gone(self, name: str) -> None:
        """It died or is frozen: what it said holds no longer."""
        if name in self.watch.workers:
            self.watch.gone(name)
            self.heard_at.pop(name, None)

    def forget(self, name: str) -> None:
        """It will not come back."""
        self.gone(name)
        self.watch.workers.pop(name, None)

    # -- asked

    def tasks(self, name: str) -> dict[int, str]:
        """Partition -> state, of those that a worker holds."""
        worker = self.watch.workers.get(name)
        return worker.tasks if worker is not None else {}

    def holds(self, name: str) -> bool:
        """Whether a worker has any partition."""
        return bool(self.tasks(name))

    @property
    def processed(self) -> int:
        """The sum of the committed positions; it counts control records, too."""
        return self.watch.processed

    def throttles(self, names: Iterable[str]) -> int:
        """Answers in which brokers asked the workers of these names to wait."""
        wanted = set(names)
        return sum(document["throttles"] for (name, _), document in self._last.items() if name in wanted)

    def whole_since(self, moment: float) -> bool:
        """Every partition runs on exactly one worker, by what was asked after that moment."""
        fresh = [name for name, at in self.heard_at.items() if at >= moment]
        held = Counter(p for name in fresh for p in self.watch.workers[name].tasks)
        running = {p for name in fresh for p, state in self.watch.workers[name].tasks.items() if state == "running"}
        return held == Counter(range(self.partitions)) and running == set(range(self.partitions))

    def behind(self, ends: Mapping[int, int]) -> int:
        """Records up to these offsets that are not committed as done."""
        return sum(max(0, end - self.watch.positions.get(partition, 0)) for partition, end in ends.items())

    def bites(self) -> Bites:
        def total(name: str) -> int:
            return sum(document["commits"].get(name, 0) for document in self._last.values())

        return Bites(
            aborts=total("aborts"),
            unknown=total("unknown"),
            fences=total("fences"),
            recoveries=total("recoveries"),
            assignments=total("rebalances"),
            duplicates=self._duplicates,
        )

    def trouble(self) -> list[str]:
        return self.watch.trouble()
