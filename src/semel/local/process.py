"""Processes of ours: start one, recognise it later from another process, look at it, end it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# The kernel takes the *thread* that started a process for its parent when it sends the parent-death signal, and a
# caller's thread may end long before the process does. This one stays until the interpreter leaves.
_parent = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-kafka-parent")

# The signal is sent for a death after it was asked for: whoever was orphaned before that leaves by itself.
_UNLESS_ORPHANED = '[ "$PPID" = "$0" ] && exec "$@"'


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid with the start time of its process, so that a reused pid is not taken for ours."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> str | None:
    """When this process started, in the kernel's words; None if there is none, or only its remains."""
    fields = _stat(pid)
    if fields is None:
        return None if Path("/proc/self").exists() else _start_time_by_ps(pid)
    state, *others = fields
    return None if state in "ZX" else others[18]


def is_stopped(pid: int) -> bool:
    """Whether a SIGSTOP holds it (Linux: elsewhere always False)."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "T"


def _stat(pid: int) -> list[str] | None:
    """What the kernel says of a process, from its state on; None if there is none, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat[stat.rindex(")") + 2 :].split()


def _start_time_by_ps(pid: int) -> str | None:
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False
    )
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def launch(
    command: Sequence[str], log: Path, *, detached: bool, environment: Mapping[str, str] | None = None
) -> ProcessId:
    """Start a process in a session of its own, its output appended to `log`. `environment`: else that of this process.

    One that is not detached is killed when this Python process ends, however it ends, so that an aborted test run
    leaves nothing behind (Linux only: elsewhere it stays).
    """
    guard = shutil.which("setpriv")
    if not detached and guard is not None:
        command = [guard, "--pdeathsig", "KILL", "sh", "-c", _UNLESS_ORPHANED, str(os.getpid()), *command]
    process = _parent.submit(_open, command, log, environment).result()
    # The process is known by its pid from here on, in whichever process asks; nobody waits on the Popen object.
    process.returncode = 0
    return ProcessId(process.pid, start_time(process.pid) or "gone")


def _open(command: Sequence[str], log: Path, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def environment_without_settings() -> dict[str, str]:
    """This process's environment, for a worker of a run: none of the caller's `SEMEL_*` settings, which could lead it to
    another cluster than the run's own."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("SEMEL_")}


def end(processes: Sequence[ProcessId], grace_s: float) -> None:
    """SIGTERM to all at once, SIGKILL to those still there after `grace_s`; returns when all are gone."""
    for process in processes:
        send(process, signal.SIGTERM)
    if not wait_gone(processes, grace_s):
        for process in processes:
            send(process, signal.SIGKILL)
        wait_gone(processes, 10.0)


def send(process: ProcessId, number: signal.Signals) -> None:
    """Send a signal, unless the process is gone."""
    if process.alive:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return


def wait_gone(processes: Sequence[ProcessId], timeout_s: float) -> bool:
    """True once all are gone, False after the timeout."""
    deadline = time.monotonic() + timeout_s
    while any(process.alive for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    for process in processes:
        _reap(process.pid)
    return True


def _reap(pid: int) -> None:
    """Remove the remains of a child; somebody else's child is not ours to wait for."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
