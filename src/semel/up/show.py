"""What a person sees of a run on standard error: a picture that moves in a terminal, a line every two seconds else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

LINE_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerShown:
    name: str
    phase: str
    pid: int
    tasks: Mapping[int, str]
    rate: float


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
    """For a log, a pipe, or a person beside `--json`."""

    def __init__(self) -> None:
        self._next = 0.0
        self._last: str = ""

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201

    def show(self, moment: Shown) -> None:
        now, new = time.monotonic(), line(moment)
        if now >= self._next and new != self._last:
            self._next, self._last = now + LINE_EVERY_S, new
            self.say(new)

    def close(self) -> None:
        return


def line(moment: Shown) -> str:
    counts = moment.counts
    workers = ", ".join(f"{w.name} {w.phase} {_tasks(w.tasks)}".rstrip() for w in moment.workers)
    return (
        f"{moment.seconds:6.1f} s  {moment.rate:,.0f}/s  published {moment.published:,}  "
        f"processed {moment.processed:,}  lag {moment.lag:,}  duplicates {counts.get('duplicates', 0):,}  "
        f"conflicts {counts.get('conflicts', 0):,}  dead letters {counts.get('dead', 0):,}  "
        f"commits {moment.commits:,}  [{workers}]" + (f"  {moment.told}" if moment.told else "")
    )


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

            # A new one each time: it goes back over what it drew before, and not over what came after that.
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(picture(moment), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def picture(moment: Shown) -> RenderableType:
    """source → dedup → agent → sink → commit with their numbers, and the workers below."""
    from rich.console import Group
    from rich.panel import Panel
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
    return Panel(
        Group(stages, "", bar, "", _workers(moment)),
        title=Text(f"semel up · {moment.url}/pipelines"),
        subtitle=Text(moment.told) if moment.told else None,
        title_align="left",
        subtitle_align="left",
    )


def _workers(moment: Shown) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 3))
    styles = {"killed": "bold red", "starting": "yellow", "restoring": "yellow", "running": "green"}
    for worker in moment.workers:
        phase = f"[{styles.get(worker.phase, 'default')}]{worker.phase}[/]"
        table.add_row(worker.name, phase, f"pid {worker.pid}", _tasks(worker.tasks), f"{worker.rate:,.0f} events/s")
    return table


def _tasks(tasks: Mapping[int, str]) -> str:
    """`0 2` where all run; `0 2 (restoring)` of those that do not yet."""
    return " ".join(str(p) if state == "running" else f"{p} ({state})" for p, state in sorted(tasks.items()))


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
