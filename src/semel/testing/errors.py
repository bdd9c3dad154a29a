"""What a `PipelineTester` raises."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

from semel.errors import SemelError


class PipelineTesterError(SemelError):
    """A `PipelineTester` was asked for something that cannot be; the message says what can."""


class NotSettled(PipelineTesterError):
    """Records are not done, and nothing more becomes of them, or more of them without end; the message says why."""


class UnknownName(PipelineTesterError, KeyError):
    """There is no such table, topic, worker or failpoint; the message names the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0])


class Died(BaseException):
    """Raised where a worker dies in the middle of an agent's code, which goes no further. No error that an agent may handle."""


def interrupts() -> tuple[type[BaseException], ...]:
    """What ends a test, and is no failure of what the test calls: Ctrl-C, `pytest.fail`, a time limit."""
    outcomes = sys.modules.get("_pytest.outcomes")
    return (KeyboardInterrupt,) if outcomes is None else (KeyboardInterrupt, outcomes.OutcomeException)


def unknown(what: str, name: object, known: Iterable[str], *, hint: str = "") -> UnknownName:
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, 1)
    there = f"there is {', '.join(names)}" if names else "there is none"
    return UnknownName(
        f"there is no {what} {name!r}; {there}" + (f"; did you mean {near[0]!r}?" if near else "") + hint
    )
