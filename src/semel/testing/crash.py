"""A crash that is to come: at which failpoint, of which worker, the how many-th time it is passed."""

from __future__ import annotations

from dataclasses import dataclass, field

from semel.runtime.failpoints import NAMES
from semel.testing.errors import PipelineTesterError, unknown


@dataclass(slots=True, eq=False)
class Crash:
    """What `PipelineTester.crash` gives back; `happened` turns true when a worker is killed.

    `at`: the failpoint, None for a crash on the spot. `worker`: whose, None for whoever passes it first.
    """

    at: str | None
    nth: int = 1
    worker: str | None = None
    lose_state: bool = False
    happened: bool = False
    _passed: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.at is not None and self.at not in NAMES:
            raise unknown("failpoint", self.at, NAMES)
        if self.nth < 1:
            raise PipelineTesterError(f"crash(nth={self.nth}): the first time is 1")

    def strikes(self, point: str, worker: str) -> bool:
        """Whether a worker that passes this failpoint dies of it."""
        if self.happened or self.at != point or self.worker not in (None, worker):
            return False
        self._passed += 1
        self.happened = self._passed >= self.nth
        return self.happened
