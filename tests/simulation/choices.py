"""Everything that a seed decides to go wrong, each with a name, so that a failing run can be repeated without some of it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field


@dataclass
class Choices:
    """`only`: the interventions that may happen; None: all. `taken`: those that did, with when, in words."""

    only: Set[str] | None = None
    taken: dict[str, tuple[float, str]] = field(default_factory=dict)

    def allows(self, name: str, at: float, words: str) -> bool:
        if self.only is not None and name not in self.only:
            return False
        self.taken[name] = (at, words)
        return True
