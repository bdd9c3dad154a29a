"""What the workers say of themselves, put together: pure data, fed with their `/pipelines` documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Document = Mapping[str, Any]


@dataclass(slots=True)
class WorkerState:
    """`phase`: starting, restoring, running, killed. `tasks`: partition -> state, as of `document`."""

    name: str
    url: str
    pid: int = 0
    phase: str = "starting"
    document: Document | None = None

    @property
    def tasks(self) -> dict[int, str]:
        return {t["partition"]: t["state"] for t in self.document["tasks"]} if self.document else {}


@dataclass(slots=True)
class Watch:
    """Progress of a run. It never goes back while a worker is away: positions are kept as the furthest seen, with what was parked
    before each."""

    topic: str
    partitions: int
    workers: dict[str, WorkerState] = field(default_factory=dict[str, WorkerState])
    positions: dict[int, int] = field(default_factory=dict[int, int])
    parked: dict[int, int] = field(default_factory=dict[int, int])
    _shown: Counter[str] = field(default_factory=Counter[str])
    # Commits are counted by each process for itself: of those that are gone, their last word.
    _commits_before: int = 0

    def hear(self, name: str, document: Document) -> None:
        worker = self.workers[name]
        worker.document = document
        states = {task["state"] for task in document["tasks"]}
        worker.phase = "starting" if not states else "running" if states == {"running"} else "restoring"
        for task in document["tasks"]:
            at = max(0, task["position"].get(self.topic, 0))
            partition = task["partition"]
            if at >= self.positions.get(partition, 0):
                self.positions[partition], self.parked[partition] = at, task.get("parked", 0)

    def gone(self, name: str) -> None:
        """The process is no more; what it said holds no longer."""
        worker = self.workers[name]
        if worker.document is not None:
            self._commits_before += worker.document["commits"]["commits"]
        worker.document = None
        worker.phase = "killed"

    @property
    def processed(self) -> int:
        """Source records whose effects are committed."""
        return sum(self.positions.values()) - sum(self.parked.values())

    @property
    def commits(self) -> int:
        return self._commits_before + sum(d["commits"]["commits"] for d in self._documents())

    @property
    def whole(self) -> bool:
        """Every partition runs on exactly one worker, so that the counts of all workers add up to the truth."""
        held = Counter(partition for worker in self.workers.values() for partition in worker.tasks)
        return held == Counter(range(self.partitions)) and self.running() == set(range(self.partitions))

    def running(self) -> set[int]:
        return {p for worker in self.workers.values() for p, state in worker.tasks.items() if state == "running"}

    def counts(self) -> Counter[str]:
        """Of all workers now; complete only while `whole`."""
        total: Counter[str] = Counter()
        for document in self._documents():
            total.update(document["counts"])
        return total

    def shown(self) -> Counter[str]:
        """Counts for a person: they do not fall while a worker is away."""
        now = self.counts()
        for name, count in now.items():
            self._shown[name] = max(count, self._shown[name])
        return self._shown

    def trouble(self) -> list[str]:
        """What the workers themselves give as the reason why nothing moves."""
        lines: list[str] = []
        for worker in self.workers.values():
            if worker.document is None:
                lines.append(f"{worker.name} ({worker.phase}) does not answer at {worker.url}")
                continue
            for key, how in (("waiting_for", ""), ("paused_by", "paused by ")):
                if reason := worker.document.get(key):
                    lines.append(f"{worker.name}: {how}{reason}")
            lines += [
                f"{worker.name}: waits with {api} for {wait_s:g} s, as a broker asked it to"
                for api, wait_s in worker.document.get("throttled", {}).items()
            ]
            lines += [
                f"{worker.name} agent {e['agent']} at {e['record']} for {e['seconds']} s, waits at {e['waits_at']}"
                for e in worker.document.get("in_hand", ())
            ]
            lines += [
                f"{worker.name} agent {e['agent']} asks for no record, {e['record'] or 'none'} waits; {e['why']}"
                for e in worker.document.get("not_asking", ())
            ]
            lines += [
                f"{worker.name} task {t['partition']}: {t['state']}, at {t['position']}, lag {t['lag']}, "
                f"restored {t['restored']} of {t['to_restore']}"
                for t in worker.document["tasks"]
            ]
        return lines

    def _documents(self) -> list[Document]:
        return [worker.document for worker in self.workers.values() if worker.document is not None]
