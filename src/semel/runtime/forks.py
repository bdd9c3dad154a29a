"""Forks: what belongs to this process alone, and not to the ones that user code forks (multiprocessing, a process pool).

A child has every open file of its parent. One that outlives a killed worker would keep its lock and its port for it.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Closing(Protocol):
    def close(self) -> None: ...


_own: WeakSet[Closing] = WeakSet()


def keep_from_children(held: Closing) -> None:
    """Whoever is forked from now on closes it at once."""
    _own.add(held)


def _close_all() -> None:
    for held in list(_own):
        held.close()


os.register_at_fork(after_in_child=_close_all)
