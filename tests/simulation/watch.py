"""The state table of the design, held against every step that any worker takes, and what of it was ever reached.

Installed once a process, over the engine's own classes: a step that the engine refuses itself is refused as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from semel.group.membership import MEMBER_STEPS, GroupMember, MemberState
from semel.runtime.failpoints import NAMES, Failpoints
from semel.stages.commit.epoch import EPOCH_STEPS, EpochState, SealedEpoch
from semel.state.task import Task, TaskState
from semel.testing.clock import process
from semel.worker.engine import Engine

TASK_STEPS = frozenset({(TaskState.RESTORING, TaskState.RUNNING), (TaskState.RUNNING, TaskState.RESTORING)})

# What can be counted: kind, then words.
Key = tuple[str, ...]

# What a revocation or a fence can find, by the code: the commit of an earlier epoch holds the turn until its end is known.
MEETINGS: frozenset[tuple[str, str]] = frozenset(
    {
        ("fence", "abandoned"),
        *((how, s) for how in ("revoke", "lost") for s in ("none", "open", "sealed", "committing")),
    }
)


@dataclass
class Watch:
    """`seen`: how often. `broken`: steps that the table does not have."""

    seen: Counter[Key] = field(default_factory=Counter[Key])
    broken: list[str] = field(default_factory=list)
    engines: dict[str, Engine] = field(default_factory=dict)
    epochs: dict[str, EpochState] = field(default_factory=dict)
    on_task: list[Any] = field(default_factory=list)
    # (client, failpoint) -> how often
    passed: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def count(self, *key: str) -> None:
        self.seen[key] += 1

    def breaks(self, what: str) -> None:
        self.broken.append(f"{process.get('')}: {what}")

    def epoch_of(self, client: str) -> str:
        """What the worker's last epoch stands at; "open" where there is work that no epoch was cut from."""
        at = self.epochs.get(client)
        if at in (EpochState.SEALED, EpochState.COMMITTING):
            return at.value
        engine = self.engines.get(client)
        if engine is not None and has_work(engine):
            return "open"
        return "none"


def has_work(engine: Engine) -> bool:
    return bool(engine.epoch.outputs) or any(t.touched for t in engine.tasks.values())


class Current:
    """The watch of the run that is going on in this process; there is one at a time."""

    watch = Watch()


def watching() -> Watch:
    """A new watch for a new run."""
    install()
    Current.watch = Watch()
    return Current.watch


@cache
def install() -> None:
    _watch_epochs()
    _watch_members()
    _watch_tasks()
    _watch_failpoints()


def _watch_epochs() -> None:
    made, step, drop = SealedEpoch.__init__, SealedEpoch.step, Engine.drop_everything

    def init(self: SealedEpoch, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        watch, client = Current.watch, process.get("")
        on_its_way = [EpochState.SEALED, EpochState.COMMITTING]
        if client in watch.engines:
            # A reset has no store for it to land in.
            on_its_way.append(EpochState.COMMITTED)
        if watch.epochs.get(client) in on_its_way:
            watch.breaks(f"epoch {self.number} was cut while one was {watch.epochs[client].name}")
        watch.epochs[client] = EpochState.SEALED

    def stepped(self: SealedEpoch, to: EpochState) -> None:
        watch, client, before = Current.watch, process.get(""), self.state
        if (before, to) not in EPOCH_STEPS:
            watch.breaks(f"epoch {self.number} went from {before.name} to {to.name}")
        if to is EpochState.COMMITTING:
            engine = watch.engines.get(client)
            if engine is not None and engine.group is not None:
                # An assignment may be lost while its last epoch waits to be sent: that one the group's fence refuses.
                watch.count("commits as", engine.group.state.name, "with" if engine.membership else "without")
                if engine.group.state is MemberState.FENCED:
                    watch.breaks(f"epoch {self.number} is committed by a worker that is fenced")
        step(self, to)
        watch.epochs[client] = to
        watch.count("epoch", before.name, to.name)

    def dropped(self: Engine) -> None:
        watch, client = Current.watch, process.get("")
        if watch.epochs.get(client) is EpochState.SEALED:
            watch.epochs[client] = EpochState.ABANDONED
            watch.count("epoch", "SEALED", "ABANDONED")
        drop(self)

    SealedEpoch.__init__ = init  # type: ignore[method-assign]
    SealedEpoch.step = stepped  # type: ignore[method-assign]
    Engine.drop_everything = dropped  # type: ignore[method-assign]


def _watch_members() -> None:
    step = GroupMember._step

    def stepped(self: GroupMember, to: MemberState) -> None:
        watch, client, before = Current.watch, process.get(""), self.state
        if to is not before:
            if (before, to) not in MEMBER_STEPS:
                watch.breaks(f"the worker went from {before.name} to {to.name}")
            watch.count("member", before.name, to.name)
            if to is MemberState.FENCED:
                last = watch.epochs.get(client)
                watch.count("meets", "fence", last.value if last is not None else "none")
            elif to is MemberState.UNASSIGNED:
                engine = watch.engines.get(client)
                if engine is not None and (engine.tasks or engine.membership is not None):
                    watch.breaks("a worker that gave everything up still holds something")
        step(self, to)

    revoke = GroupMember._revoke

    async def revoked(self: GroupMember, *, lost: bool) -> None:
        watch = Current.watch
        watch.count("meets", "lost" if lost else "revoke", watch.epoch_of(process.get("")))
        await revoke(self, lost=lost)

    GroupMember._step = stepped  # type: ignore[method-assign]
    GroupMember._revoke = revoked  # type: ignore[method-assign]


def _watch_tasks() -> None:
    def get(self: Task) -> TaskState:
        return self._state  # type: ignore[attr-defined]

    def put(self: Task, to: TaskState) -> None:
        before = self.__dict__.get("_state")
        self.__dict__["_state"] = to
        if before is None or before is to:
            return
        watch, client = Current.watch, process.get("")
        if (before, to) not in TASK_STEPS:
            watch.breaks(f"task {self.partition} went from {before.name} to {to.name}")
        watch.count("task", before.name, to.name)
        if to is TaskState.RUNNING:
            engine = watch.engines.get(client)
            if engine is not None and engine.group is not None and engine.membership is None:
                watch.breaks(f"task {self.partition} runs without an assignment")
            for told in watch.on_task:
                told(client, self.partition)

    Task.state = property(get, put)  # type: ignore[assignment,misc]


def _watch_failpoints() -> None:
    async def passed(self: Failpoints, name: str) -> None:
        Current.watch.passed[process.get(""), name] += 1
        hook = self.hooks.get(name)
        if hook is not None:
            await hook()

    Failpoints.__call__ = passed  # type: ignore[method-assign]


def never_reached(seen: Counter[Key], rpcs: Mapping[str, Collection[int]]) -> dict[str, list[str]]:
    """By kind, what was possible and did not happen. `rpcs`: the error codes that a broker gives on each."""
    wanted: dict[str, list[Key]] = {
        "epoch": [("epoch", a.name, b.name) for a, b in EPOCH_STEPS],
        "member": [("member", a.name, b.name) for a, b in MEMBER_STEPS],
        "task": [("task", a.name, b.name) for a, b in TASK_STEPS],
        "failpoint crashed at": [("crash", name) for name in NAMES],
        "rpc answered with": [("rpc", api, str(code)) for api, codes in rpcs.items() for code in codes],
        "meets epoch": [("meets", *pair) for pair in MEETINGS],
    }
    return {kind: sorted(" ".join(k[1:]) for k in keys if not seen[k]) for kind, keys in wanted.items()}
