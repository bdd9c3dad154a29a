"""A child of this process, as user code that runs processes has them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator


@contextlib.contextmanager
def forked() -> Generator[int]:
    """The pid of a child of this process that lives as long as the block, as those of a process pool do."""
    (wait, go), (begun, begin) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(go)
        os.write(begin, b".")
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    os.read(begun, 1)
    os.close(begun)
    os.close(begin)
    try:
        yield pid
    finally:
        os.close(go)
        os.waitpid(pid, 0)
