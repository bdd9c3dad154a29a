"""A file system that stalls: frozen for a while, open for a moment, again and again. What writes to it waits.

Each freeze writes back what is dirty and then holds every write, sync, creation and deletion until the thaw, in the
kernel; reads go on. It is done by a process of its own, which thaws whatever ends the run: it runs this file, and needs
nothing but it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
# Long enough that a flush, a compaction or an opening meets it; a session is many times longer.
FROZEN_S = 0.25
OPEN_S = 0.02


class Stalled(NamedTuple):
    """What was seen: `met` of `stalls` found a thread of the watched process waiting for its disk."""

    stalls: int = 0
    met: int = 0
    failed: str = ""

    def __str__(self) -> str:
        return (
            f"it could not be stalled: {self.failed}"
            if self.failed
            else f"{self.stalls} stalls, {self.met} met by the worker"
        )


class Stalling:
    """The process that stalls a folder. `watch` says whose writes are to be seen waiting; `end` is safe to call twice."""

    def __init__(self, folder: Path) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-I", __file__, str(folder)]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._ended: Stalled | None = None

    def watch(self, pid: int) -> None:
        assert self._process.stdin is not None
        # Where it has failed meanwhile, `end` says why.
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{pid}\n")
            self._process.stdin.flush()

    def end(self) -> Stalled:
        """Thawed, and what was seen meanwhile."""
        if self._ended is None:
            out, err = self._process.communicate(timeout=10)
            self._ended = Stalled(*json.loads(out)) if out else Stalled(failed=err.strip()[-200:] or "it was killed")
        return self._ended


def freeze(folder: Path) -> bool:
    """False where it cannot be frozen, or is."""
    return _ioctl(folder, _FIFREEZE)


def thaw(folder: Path) -> bool:
    """False where it was not frozen."""
    return _ioctl(folder, _FITHAW)


def _ioctl(folder: Path, request: int) -> bool:
    try:
        at = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.ioctl(at, request, 0)
    except OSError:
        return False
    finally:
        os.close(at)
    return True


# -- the process


def _stall(folder: Path) -> Stalled:
    """Until standard input ends, which it also does when whoever started this dies."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    stalls, met, pid = 0, 0, 0
    try:
        while True:
            stalls += freeze(folder)
            ready, _, _ = select.select([sys.stdin], [], [], FROZEN_S)
            line = sys.stdin.readline() if ready else None
            met += _waits(pid)
            thaw(folder)
            if line == "":
                return Stalled(stalls, met)
            pid = int(line) if line else pid
            time.sleep(OPEN_S)
    finally:
        thaw(folder)


def _waits(pid: int) -> bool:
    """Whether a thread of the process is in an uninterruptible wait, as one that writes to a frozen disk is."""
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError, IndexError):
            if task.read_text().rsplit(")", 1)[1].split()[0] == "D":
                return True
    return False


def _ends(*_: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    # Ctrl-C goes to whoever started this, and that ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ends)
    sys.stdout.write(json.dumps(_stall(Path(sys.argv[1]))))
