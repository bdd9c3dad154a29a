"""What a person sees of a run, as the screen is given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from semel.display.screen import Lines, Picture, Screen, WorkerShown, panel, workers_grid, workers_line

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Shown:
    """One moment of a run. `rate`: source records a second, redelivered ones included."""

    seconds: float
    limit: int
    events: int
    published: int
    processed: int
    rate: float
    counts: Mapping[str, int]
    commits: int
    commit_ms: float | None
    url: str
    workers: tuple[WorkerShown, ...]
    told: str = ""

    @property
    def lag(self) -> int:
        return max(0, self.published - self.processed)

    @property
    def accepted(self) -> int:
        return self.counts.get("out", 0) + self.counts.get("filtered", 0)


Display: TypeAlias = Screen[Shown]


def display(*, moving: bool) -> Display:
    return Picture(picture, stays=True) if moving else Lines(line, LINE_EVERY_S)


def line(moment: Shown) -> str:
    counts = moment.counts
    return (
        f"{moment.seconds:6.1f} s  {moment.rate:,.0f}/s  published {moment.published:,}  "
        f"processed {moment.processed:,}  lag {moment.lag:,}  duplicates {counts.get('duplicates', 0):,}  "
        f"conflicts {counts.get('conflicts', 0):,}  dead letters {counts.get('dead', 0):,}  "
        f"commits {moment.commits:,}  {workers_line(moment.workers)}" + (f"  {moment.told}" if moment.told else "")
    )


def picture(moment: Shown) -> RenderableType:
    """source → dedup → agent → sink → commit with their numbers, and the workers below."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    counts = moment.counts
    stages = Table.grid(padding=(0, 2), expand=True)
    for _ in range(5):
        stages.add_column(ratio=1)
    stages.add_row(*(Text(name, style="bold cyan") for name in ("source →", "dedup →", "agent →", "sink →", "commit")))
    for row in (
        (
            f"{moment.published:,} published",
            f"{counts.get('duplicates', 0):,} duplicates",
            f"{moment.accepted:,} accepted",
            f"{counts.get('out', 0):,} late flights",
            f"{moment.commits:,} commits",
        ),
        (
            f"{moment.lag:,} lag",
            f"{counts.get('conflicts', 0):,} conflicts",
            f"{moment.rate:,.0f} events/s",
            f"{counts.get('dead', 0):,} dead letters",
            "" if moment.commit_ms is None else f"{moment.commit_ms:g} ms each (median)",
        ),
    ):
        stages.add_row(*row)
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(
        f"{moment.processed:,} processed",
        ProgressBar(total=max(1, moment.limit), completed=min(moment.limit, moment.accepted)),
        f"{moment.seconds:.0f} s",
    )
    title = f"semel up · {moment.url}/pipelines"
    return panel(stages, bar, workers_grid(moment.workers), title=title, subtitle=moment.told)


def summary(found: Mapping[str, Any]) -> str:
    """The report as sentences."""

    def number(name: str) -> str:
        value = found.get(name)
        return "?" if value is None else f"{value:,}"

    lines = [
        f"{number('events')} events and {number('redelivered')} redelivered records in {number('seconds')} s, "
        f"{number('events_per_s')} events/s, {number('kills')} worker killed and back",
        f"accepted {number('accepted')}, duplicates {number('duplicates')}, conflicts {number('conflicts')}, "
        f"dead-lettered {number('dead_lettered')}",
        f"{number('lost')} lost, {number('doubled')} doubled, {number('wrong_rows')} wrong: "
        + ("ok" if found["ok"] else "NOT OK"),
    ]
    lines += [f"  {finding}" for finding in found.get("findings", ())]
    return "\n".join(lines)
