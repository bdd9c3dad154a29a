"""Which effects of an agent may happen twice, and which may be missing: what the runs of `EffectTrials` have shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semel.display.counting import counted

_TITLES = ("effect", "once", "maybe twice", "may be missing")


@dataclass(frozen=True, slots=True)
class Trial:
    """One run in which one thing went wrong. `trouble`: what. `counts`: how often each effect happened by its end.
    `letters`: the errors of events that ended in the dead letters. `stuck`: why events are not done, where they are not."""

    trouble: str
    counts: Mapping[str, int]
    letters: tuple[str, ...] = ()
    stuck: str = ""


@dataclass(frozen=True, slots=True)
class Witness:
    """A run in which an effect happened `happened` times, and `expected` times where nothing goes wrong."""

    trouble: str
    happened: int
    expected: int
    outcome: str

    def __str__(self) -> str:
        return f"{self.trouble}: {self.happened} instead of {self.expected}{self.outcome}"


@dataclass(frozen=True, slots=True)
class EffectReport:
    """What was tried, and what came of it. `expected`: how often each effect happens where nothing goes wrong. Printed, it is
    a table with a witness for each cell, and all witnesses below it."""

    pipeline: str
    expected: Mapping[str, int]
    trials: Sequence[Trial]

    @property
    def once(self) -> set[str]:
        """The effects that happened as often as without trouble in every run."""
        return {effect for effect in self.expected if not self.witnesses(effect)}

    @property
    def maybe_twice(self) -> set[str]:
        return {effect for effect in self.expected if self._more(effect)}

    @property
    def may_be_missing(self) -> set[str]:
        return {effect for effect in self.expected if self._fewer(effect)}

    def witnesses(self, effect: str) -> list[Witness]:
        """The runs in which the effect happened more or less often than without trouble. KeyError for one that is unknown."""
        expected = self.expected[effect]
        return [
            Witness(trial.trouble, trial.counts[effect], expected, _outcome(trial))
            for trial in self.trials
            if trial.counts[effect] != expected
        ]

    def _more(self, effect: str) -> list[Witness]:
        return [w for w in self.witnesses(effect) if w.happened > w.expected]

    def _fewer(self, effect: str) -> list[Witness]:
        return [w for w in self.witnesses(effect) if w.happened < w.expected]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [_TITLES]
        for effect in self.expected:
            kept = len(self.trials) - len(self.witnesses(effect))
            rows.append(
                (effect, f"in {kept} of {len(self.trials)}", _cell(self._more(effect)), _cell(self._fewer(effect)))
            )
        widths = [max(len(row[n]) for row in rows) for n in range(len(_TITLES))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines = [f"{self.pipeline}: {counted(len(self.trials), 'run')} in which one thing goes wrong", "", *lines]
        for effect in self.expected:
            if witnesses := self.witnesses(effect):
                lines += ["", f"{effect}:", *(f"  {witness}" for witness in witnesses)]
        return "\n".join(lines)


def _cell(witnesses: Sequence[Witness]) -> str:
    if not witnesses:
        return "-"
    more = f" (and {len(witnesses) - 1} more)" if len(witnesses) > 1 else ""
    return f"{witnesses[0].trouble}{more}"


def _outcome(trial: Trial) -> str:
    if trial.stuck:
        return f"; its event is not done: {trial.stuck}"
    return f"; dead letter: {trial.letters[-1]}" if trial.letters else ""
