"""How the pipeline is doing, by what its workers say over HTTP; pure data, fed with their `/pipelines` documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from semel.local.watch import Document, Watch, WorkerState


class Observed(Watch):
    """`started`, `heard` and `gone` keep it true; times are the caller's, in seconds."""

    def __init__(self, topic: str, partitions: int) -> None:
        super().__init__(topic, partitions)
        self._heard_at: dict[str, float] = {}
        # Of each process, also of those that are gone, the last that it said.
        self._last: dict[tuple[str, int], Document] = {}
        self._duplicates = 0
        # Parked events that wait for letters, by partition.
        self._waiting: dict[int, int] = {}
        # Until when brokers asked it to wait, whatever becomes of their quotas.
        self._throttled_until: dict[str, float] = {}

    def started(self, name: str, url: str, pid: int) -> None:
        self.workers[name] = WorkerState(name, url, pid)
        self._heard_at.pop(name, None)
        self._throttled_until.pop(name, None)

    def heard(self, name: str, document: Document, asked_at: float) -> None:
        self.hear(name, document)
        self._heard_at[name] = asked_at
        self._last[name, self.workers[name].pid] = document
        self._waiting |= {task["partition"]: task.get("waiting_for_letters", 0) for task in document["tasks"]}
        self._throttled_until[name] = asked_at + max(document["throttled"].values(), default=0.0)
        self._duplicates = max(self._duplicates, document["counts"].get("duplicates", 0))

    def gone(self, name: str) -> None:
        """It died or is frozen: what it said holds no longer."""
        if name in self.workers:
            super().gone(name)
            self._heard_at.pop(name, None)

    def forget(self, name: str) -> None:
        """It will not come back."""
        self.gone(name)
        self.workers.pop(name, None)

    # -- asked

    def tasks(self, name: str) -> dict[int, str]:
        """Partition -> state, of those that a worker holds."""
        return self.workers[name].tasks if name in self.workers else {}

    def holds(self, name: str) -> bool:
        """Whether a worker has any partition."""
        return bool(self.tasks(name))

    def whole_since(self, moment: float) -> bool:
        """Every partition runs on exactly one worker, by what was asked after that moment."""
        held = [task for name, at in self._heard_at.items() if at >= moment for task in self.tasks(name).items()]
        return Counter(held) == Counter((partition, "running") for partition in range(self.partitions))

    def behind(self, ends: Mapping[int, int]) -> int:
        """Records up to these offsets that are not committed as done; without those that wait for somebody to act on a letter."""
        return sum(
            max(0, end - self.positions.get(partition, 0))
            + max(0, self.parked.get(partition, 0) - self._waiting.get(partition, 0))
            for partition, end in ends.items()
        )

    def throttles(self, names: Iterable[str]) -> int:
        """Answers in which brokers asked the workers of these names to wait."""
        wanted = set(names)
        return sum(document["throttles"] for (name, _), document in self._last.items() if name in wanted)

    def throttled_s(self, names: Iterable[str], at: float) -> float:
        """For how much longer, from that moment, the workers of these names wait because brokers asked them to."""
        return max(0.0, *(self._throttled_until.get(name, 0.0) - at for name in names))

    def engine(self) -> dict[str, int]:
        """What shows that faults came through to the engine; sums over every process that ran."""
        commits = [document["commits"] for document in self._last.values()]
        counted = {name: sum(c[name] for c in commits) for name in ("aborts", "unknown", "fences", "recoveries")}
        assignments = sum(c["rebalances"] for c in commits)
        return {**counted, "assignments": assignments, "duplicates": self._duplicates}
