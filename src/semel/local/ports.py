"""Ports of the loopback: which are free, and a choice that does not clash with anybody's."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterable

from semel.local.errors import PortTaken
from semel.local.properties import HOST

# Below the kernel's range for outgoing connections: no client can be given one of these by chance.
RANGE = range(20000, 32768)


def is_free(port: int) -> bool:
    """True if nothing listens there. A connection of a past run that lingers in TIME_WAIT does not count."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError:
            return False
    return True


def choose(count: int, taken: Iterable[int] = ()) -> list[int]:
    """Free ports, different from each other and from `taken`."""
    avoid = set(taken)
    chosen: list[int] = []
    for port in random.sample(RANGE, len(RANGE)):
        if len(chosen) == count:
            break
        if port not in avoid and is_free(port):
            chosen.append(port)
    if len(chosen) < count:
        raise PortTaken(f"fewer than {count} ports between {RANGE.start} and {RANGE.stop - 1} are free")
    return chosen


def refuse_taken(ports: Iterable[int], *, wait_s: float = 0.0) -> None:
    """Raises `PortTaken` naming the first port that another process listens on.

    `wait_s`: for how long one that is being let go is waited for: a process of many threads that was killed is gone before its
    last thread is, which closes what it listened on.
    """
    until = time.monotonic() + wait_s
    for port in ports:
        while not is_free(port):
            if time.monotonic() >= until:
                raise PortTaken(
                    f"Port {port} on {HOST} belongs to a process that this data directory did not start. "
                    "Stop that process, or choose another port"
                )
            time.sleep(0.05)
