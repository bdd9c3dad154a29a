"""A failing run with as little going wrong as still makes it fail: decisions are left out by halves, then one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def shrunk(names: Sequence[str], fails: Callable[[frozenset[str]], bool], *, seconds: float = 60.0) -> list[str]:
    """The names that are needed, in their order; `fails` runs with those it is given. No more than so long."""
    until = time.monotonic() + seconds
    kept, pieces = list(names), 2
    while len(kept) > 1 and time.monotonic() < until:
        size = max(1, -(-len(kept) // pieces))
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if fails(frozenset(rest)):
                kept, pieces = rest, max(2, pieces - 1)
                break
            if time.monotonic() > until:
                return kept
        else:
            if size == 1:
                break
            pieces = min(len(kept), pieces * 2)
    if len(kept) == 1 and fails(frozenset()):
        return []
    return kept
