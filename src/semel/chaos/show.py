"""What a person sees of a run on standard error: a picture that moves in a terminal, lines else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

LINE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerShown:
    name: str
    phase: str
    pid: int
    tasks: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Shown:
    """One moment of a run. `goal`: what it goes on until, in words; `rate`: source records a second."""

    seconds: float
    goal: str
    stage: str
    published: int
    lag: int
    rate: float
    faults: Mapping[str, Mapping[str, int]]
    active: int
    recovery_p50_s: float | None
    findings: int
    workers: tuple[WorkerShown, ...]


class Display(Protocol):
    def say(self, sentence: str) -> None:
        """Something that happened, kept on the screen."""
        ...

    def show(self, moment: Shown) -> None: ...

    def close(self) -> None:
        """Leave the screen in order. Safe to call twice."""
        ...


def display(*, moving: bool) -> Display:
    return Picture() if moving else Lines()


class Lines:
    def __init__(self) -> None:
        self._next = 0.0

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201

    def show(self, moment: Shown) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY_S
            self.say(line(moment))

    def close(self) -> None:
        return


def line(moment: Shown) -> str:
    workers = ", ".join(f"{w.name} {w.phase} {tasks(w.tasks)}".rstrip() for w in moment.workers)
    total = sum(kind["faults"] for kind in moment.faults.values())
    return (
        f"{moment.seconds:7.1f} s  {moment.stage}  faults {total}  published {moment.published:,}  {moment.rate:,.0f}/s  "
        f"lag {moment.lag:,}  findings {moment.findings}  [{workers}]"
    )


def tasks(held: Mapping[int, str]) -> str:
    """`0 2` where all run; `0 2 (restoring)` of those that do not yet."""
    return " ".join(str(p) if state == "running" else f"{p} ({state})" for p, state in sorted(held.items()))


class Picture:
    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, soft_wrap=True)

    def show(self, moment: Shown) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(picture(moment), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def picture(moment: Shown) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    flow = Table.grid(padding=(0, 3))
    recovery = "" if moment.recovery_p50_s is None else f"recovery {moment.recovery_p50_s:.1f} s (median)"
    findings = Text(f"{moment.findings} findings", style="bold red" if moment.findings else "green")
    flow.add_row(
        f"{moment.published:,} published", f"{moment.rate:,.0f} records/s", f"lag {moment.lag:,}", recovery, findings
    )
    faults = Table.grid(padding=(0, 3))
    faults.add_row(*(Text(kind, style="bold cyan") for kind in moment.faults))
    faults.add_row(*(f"{kind['faults']} ({kind['bit']} bit)" for kind in moment.faults.values()))
    workers = Table.grid(padding=(0, 3))
    styles = {"dead": "bold red", "frozen": "bold blue", "starting": "yellow", "running": "green"}
    for worker in moment.workers:
        phase = Text(worker.phase, style=styles.get(worker.phase, ""))
        workers.add_row(worker.name, phase, f"pid {worker.pid}", tasks(worker.tasks))
    return Panel(
        Group(flow, "", faults, "", workers),
        title=Text(f"semel chaos · {moment.stage} · {moment.seconds:.0f} s of {moment.goal}"),
        subtitle=Text(f"{moment.active} faults in force") if moment.active else None,
        title_align="left",
        subtitle_align="left",
    )
