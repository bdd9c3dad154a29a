"""Forks: what belongs to this process alone, and not to the ones that user code forks (multiprocessing, a process pool).

A child has every open file of its parent. One that outlives a killed worker would keep its lock and its port for it. And one
that comes back from the agent's code into the engine would be a second worker on the same connections: it ends there.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn, Protocol
from weakref import WeakSet

log = logging.getLogger("semel")

# How many forks lie between the process that was started and this one. Who was made under another number was made elsewhere.
generation: int = 0


class Closing(Protocol):
    def close(self) -> None: ...


_own: WeakSet[Closing] = WeakSet()


def keep_from_children(held: Closing) -> None:
    """Whoever is forked from now on closes it at once."""
    _own.add(held)


def leave(error: BaseException | None = None) -> NoReturn:
    """End this process, which the agent's code forked: as `error` says where that is a SystemExit, and else with code 1, or
    0 where it just went on. Nothing of the worker's is closed or flushed."""
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        given = error.code
        code = given if isinstance(given, int) else int(given is not None)
        if given is not None and not isinstance(given, int):
            sys.stderr.write(f"{given}\n")
    else:
        log.warning("a process that the agent's code forked came back from it, and ends here with exit code %d: end it with "
                    "os._exit() or sys.exit(), or begin it by multiprocessing or subprocess", code, exc_info=error)  # fmt: skip
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


def _begin_in_child() -> None:
    global generation  # noqa: PLW0603
    generation += 1
    for held in list(_own):
        held.close()


os.register_at_fork(after_in_child=_begin_in_child)
