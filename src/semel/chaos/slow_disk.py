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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
# Long enough that a flush, a compaction or an opening meets it; a session is many times longer.
FROZEN_S = 0.25
OPEN_S = 0.02
_PROBE = "probe"
_QUIET_WRITES = 9


class Stalled(NamedTuple):
    """What was seen. `worst_ms`: the longest that one write with its sync took, `quiet_ms`: half of them took before.

    `met` of `stalls` found a thread of the watched process waiting for its disk.
    """

    stalls: int = 0
    met: int = 0
    quiet_ms: float = 0.0
    worst_ms: float = 0.0
    failed: str = ""

    def __str__(self) -> str:
        if self.failed:
            return f"it could not be stalled: {self.failed}"
        return (
            f"{self.stalls} stalls, {self.met} met by the worker; a write took up to {self.worst_ms:,.0f} ms, "
            f"{self.quiet_ms:.1f} ms before"
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


def _write_s(folder: Path) -> float:
    """How long it takes to write and sync as a store does."""
    began = time.monotonic()
    # The disk may be full, too: that takes its time all the same.
    with suppress(OSError), (folder / _PROBE).open("wb", buffering=0) as file:
        file.write(bytes(4096))
        os.fdatasync(file.fileno())
    return time.monotonic() - began


def _stall(folder: Path) -> Stalled:
    """Until standard input ends, which it also does when whoever started this dies."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    quiet_s = median(_write_s(folder) for _ in range(_QUIET_WRITES))
    worst_s, stalls, met, pid = 0.0, 0, 0, 0
    with ThreadPoolExecutor(1) as writer:
        try:
            while True:
                frozen = freeze(folder)
                writing = writer.submit(_write_s, folder)
                ready, _, _ = select.select([sys.stdin], [], [], FROZEN_S)
                line = sys.stdin.readline() if ready else None
                stalls += frozen
                met += frozen and _waits(pid)
                thaw(folder)
                worst_s = max(worst_s, writing.result())
                if line == "":
                    break
                pid = int(line) if line else pid
                time.sleep(OPEN_S)
        finally:
            # Before the writer is waited for.
            thaw(folder)
    (folder / _PROBE).unlink(missing_ok=True)
    return Stalled(stalls, met, quiet_s * 1000, worst_s * 1000)


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
