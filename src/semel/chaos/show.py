"""What a person sees of a run, as the screen is given it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from semel.chaos.fleet import Fleet
from semel.chaos.timeline import percentile, rates
from semel.display.screen import Lines, Picture, Screen, WorkerShown, panel, workers_grid, workers_line

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 5.0
RATE_OVER_S = 3.0
# Side by side, so that their names are whole in 80 columns.
KINDS_A_ROW = 5

Display: TypeAlias = Screen[Fleet]


def display(*, moving: bool) -> Display:
    return Picture(picture, stays=False) if moving else Lines(line, LINE_EVERY_S)


def line(on: Fleet) -> str:
    now = on.timeline.samples[-1]
    return (
        f"{now.at_s:7.1f} s  {on.stage}  faults {len(on.timeline.entries)}  published {now.published:,}  {_rate(on):,.0f}/s  "
        f"lag {now.lag:,}  findings {len(on.findings)}  {workers_line(_workers(on))}"
    )


def picture(on: Fleet) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    now, recovery_s = on.timeline.samples[-1], percentile(on.timeline.recoveries(), 0.5)
    flow, faults = Table.grid(padding=(0, 3)), Table.grid(padding=(0, 3))
    recovery = "" if recovery_s is None else f"recovery {recovery_s:.1f} s (median)"
    findings = Text(f"{len(on.findings)} findings", style="bold red" if on.findings else "green")
    flow.add_row(f"{now.published:,} published", f"{_rate(on):,.0f} records/s", f"lag {now.lag:,}", recovery, findings)
    kinds = list(on.timeline.by_kind().items())
    for first in range(0, len(kinds), KINDS_A_ROW):
        row = kinds[first : first + KINDS_A_ROW]
        faults.add_row(*(Text(kind, style="bold cyan") for kind, _ in row))
        faults.add_row(*(f"{count['faults']} ({count['bit']} bit)" for _, count in row))
    return panel(
        flow,
        faults,
        workers_grid(_workers(on)),
        title=f"semel chaos · {on.stage} · {now.at_s:.0f} s of {on.goal}",
        subtitle=f"{len(on.active)} fault{'s' if len(on.active) > 1 else ''} in force" if on.active else "",
    )


def _rate(on: Fleet) -> float:
    """Source records a second."""
    return next((rate for _, rate in reversed(rates(on.timeline.samples[-20:], RATE_OVER_S))), 0.0)


def _workers(on: Fleet) -> list[WorkerShown]:
    return [WorkerShown(w.name, on.timeline.phase(w.name), w.pid, on.observed.tasks(w.name)) for w in on.everyone]
