"""What becomes of something of Faust's on semel: it works, it has nothing to act on, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple


class Does(Enum):
    WORKS = "works"
    MOOT = "has nothing to act on"
    REFUSED = "refused"


class Rule(NamedTuple):
    """`message`: as what it works, what stands in its place, or what to do instead. `fine`: values that ask for nothing
    that is refused."""

    does: Does
    message: str
    fine: Callable[[Any], bool] = lambda value: False


def works(note: str = "as in Faust") -> Rule:
    return Rule(Does.WORKS, note)


def moot(note: str) -> Rule:
    return Rule(Does.MOOT, note)


def refused(note: str, fine: Callable[[Any], bool] = lambda value: False) -> Rule:
    return Rule(Does.REFUSED, note, fine)
