"""What a person sees of a run that lasts, on standard error: a picture that moves in a terminal, lines else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table

Moment = TypeVar("Moment")
Shown_contra = TypeVar("Shown_contra", contravariant=True)

_STYLES = {
    "dead": "bold red",
    "killed": "bold red",
    "frozen": "bold blue",
    "starting": "yellow",
    "restoring": "yellow",
    "running": "green",
}


class Screen(Protocol[Shown_contra]):
    def say(self, sentence: str) -> None:
        """Something that happened, kept on the screen."""
        ...

    def show(self, moment: Shown_contra) -> None:
        """How the run is now; may come as often as it likes."""
        ...

    def close(self) -> None:
        """Leave the screen in order. Safe to call twice; what is shown after it begins a new picture."""
        ...


class Lines(Generic[Moment]):
    """For a log, a pipe, or a person beside `--json`: a line at the most every `every_s`, where it says something new."""

    def __init__(self, line: Callable[[Moment], str], every_s: float) -> None:
        self._line = line
        self._every_s = every_s
        self._next = 0.0
        self._last: str = ""

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201

    def show(self, moment: Moment) -> None:
        now, new = time.monotonic(), self._line(moment)
        if now >= self._next and new != self._last:
            self._next, self._last = now + self._every_s, new
            self.say(new)

    def close(self) -> None:
        return


class Picture(Generic[Moment]):
    """`stays`: the last picture stands on the screen after `close`, else only what was said."""

    def __init__(self, picture: Callable[[Moment], RenderableType], *, stays: bool) -> None:
        from rich.console import Console

        self._picture = picture
        self._stays = stays
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, soft_wrap=True)

    def show(self, moment: Moment) -> None:
        if self._live is None:
            from rich.live import Live

            # A new one each time: it goes back over what it drew before, and not over what came after that.
            self._live = Live(console=self._console, auto_refresh=False, transient=not self._stays)
            self._live.start()
        self._live.update(self._picture(moment), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


# -- what lines and pictures are made of


@dataclass(frozen=True, slots=True)
class WorkerShown:
    """`tasks`: partition -> state. `rate`: events a second, where it is known of each worker."""

    name: str
    phase: str
    pid: int
    tasks: Mapping[int, str]
    rate: float | None = None


def workers_line(workers: Sequence[WorkerShown]) -> str:
    return "[" + ", ".join(f"{w.name} {w.phase} {_tasks(w.tasks)}".rstrip() for w in workers) + "]"


def workers_grid(workers: Sequence[WorkerShown]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 3))
    for worker in workers:
        phase = Text(worker.phase, style=_STYLES.get(worker.phase, ""))
        rate = () if worker.rate is None else (f"{worker.rate:,.0f} events/s",)
        grid.add_row(worker.name, phase, f"pid {worker.pid}", _tasks(worker.tasks), *rate)
    return grid


def _tasks(held: Mapping[int, str]) -> str:
    """`0 2` where all run; `0 2 (restoring)` of those that do not yet."""
    return " ".join(str(p) if state == "running" else f"{p} ({state})" for p, state in sorted(held.items()))


def panel(*parts: RenderableType, title: str, subtitle: str = "") -> Panel:
    """The frame around a picture, with an empty line between its parts."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    spaced = [piece for part in parts for piece in ("", part)][1:]
    return Panel(
        Group(*spaced),
        title=Text(title),
        subtitle=Text(subtitle) if subtitle else None,
        title_align="left",
        subtitle_align="left",
    )
