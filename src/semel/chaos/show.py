"""What a person sees of a run, as the screen is given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from semel.display.screen import Lines, Picture, Screen, WorkerShown, panel, workers_grid, workers_line

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 5.0
# Side by side, so that their names are whole in 80 columns.
KINDS_A_ROW = 5


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


Display: TypeAlias = Screen[Shown]


def display(*, moving: bool) -> Display:
    return Picture(picture, stays=False) if moving else Lines(line, LINE_EVERY_S)


def line(moment: Shown) -> str:
    total = sum(kind["faults"] for kind in moment.faults.values())
    return (
        f"{moment.seconds:7.1f} s  {moment.stage}  faults {total}  published {moment.published:,}  {moment.rate:,.0f}/s  "
        f"lag {moment.lag:,}  findings {moment.findings}  {workers_line(moment.workers)}"
    )


def picture(moment: Shown) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    flow, faults = Table.grid(padding=(0, 3)), Table.grid(padding=(0, 3))
    recovery = "" if moment.recovery_p50_s is None else f"recovery {moment.recovery_p50_s:.1f} s (median)"
    findings = Text(f"{moment.findings} findings", style="bold red" if moment.findings else "green")
    flow.add_row(
        f"{moment.published:,} published", f"{moment.rate:,.0f} records/s", f"lag {moment.lag:,}", recovery, findings
    )
    kinds = list(moment.faults.items())
    for first in range(0, len(kinds), KINDS_A_ROW):
        row = kinds[first : first + KINDS_A_ROW]
        faults.add_row(*(Text(kind, style="bold cyan") for kind, _ in row))
        faults.add_row(*(f"{count['faults']} ({count['bit']} bit)" for _, count in row))
    return panel(
        flow,
        faults,
        workers_grid(moment.workers),
        title=f"semel chaos · {moment.stage} · {moment.seconds:.0f} s of {moment.goal}",
        subtitle=f"{moment.active} fault{'s' if moment.active > 1 else ''} in force" if moment.active else "",
    )
