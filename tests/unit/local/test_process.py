from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from semel.local.process import ProcessId, end, launch, start_time

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]


def wait_until_gone(process: ProcessId) -> None:
    deadline = time.monotonic() + 10
    while process.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_is_alive_until_it_is_ended(tmp_path: Path) -> None:
    process = launch(SLEEP, tmp_path / "log", detached=False)
    assert process.alive
    end([process], grace_s=5)
    assert not process.alive


def test_one_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    process = launch(DEAF, tmp_path / "log", detached=False)
    while "deaf" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    began = time.monotonic()
    end([process], grace_s=0.2)
    assert not process.alive
    assert time.monotonic() - began >= 0.2


def test_a_reused_pid_is_another_process_and_is_not_ended() -> None:
    stranger = ProcessId(os.getpid(), "1")
    assert not stranger.alive
    end([stranger], grace_s=0)
    assert start_time(os.getpid()) is not None


def test_a_process_nobody_waited_for_counts_as_gone(tmp_path: Path) -> None:
    process = launch([sys.executable, "-c", "pass"], tmp_path / "log", detached=False)
    wait_until_gone(process)


def test_output_and_errors_go_to_the_log(tmp_path: Path) -> None:
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    process = launch([sys.executable, "-c", code], tmp_path / "log", detached=True)
    end([process], grace_s=0)
    process = launch([sys.executable, "-c", code], tmp_path / "log", detached=True)
    wait_until_gone(process)
    assert (tmp_path / "log").read_text().endswith("out\nerr\n")


def test_a_process_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    started: list[ProcessId] = []
    thread = threading.Thread(target=lambda: started.append(launch(SLEEP, tmp_path / "log", detached=False)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert started[0].alive
    end(started, grace_s=5)


def launched_by_one_that_is_killed(
    tmp_path: Path, *, detached: bool, environment: Mapping[str, str] | None = None
) -> ProcessId:
    owner = f"""
import os, signal
from pathlib import Path
from semel.local.process import launch
process = launch({SLEEP!r}, Path({str(tmp_path / "log")!r}), detached={detached})
print(process.pid, process.started, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    told = subprocess.run(
        [sys.executable, "-c", owner], capture_output=True, text=True, timeout=60, check=False, env=environment
    ).stdout
    pid, started = told.split()
    return ProcessId(int(pid), started)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (Linux)")
def test_a_process_whose_owner_was_killed_before_it_could_ask_for_the_signal_leaves_by_itself(tmp_path: Path) -> None:
    slow = tmp_path / "setpriv"
    slow.write_text(f'#!/bin/sh\nsleep 0.5\nexec {shutil.which("setpriv")} "$@"\n')
    slow.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    wait_until_gone(launched_by_one_that_is_killed(tmp_path, detached=False, environment=environment))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (Linux)")
@pytest.mark.parametrize("detached", [False, True])
def test_only_a_detached_process_outlives_a_killed_owner(tmp_path: Path, detached: bool) -> None:
    process = launched_by_one_that_is_killed(tmp_path, detached=detached)
    if detached:
        time.sleep(0.2)
        assert process.alive
        end([process], grace_s=5)
    else:
        wait_until_gone(process)
