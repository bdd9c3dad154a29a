"""How a process ends: what the program's own code ends it with is said, and never looks like an end in order."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from semel.worker.deadline import exits_said


def ended(code: str) -> subprocess.CompletedProcess[str]:
    begun = f"""
import logging, os
from semel.worker.deadline import exits_said
logging.basicConfig()
def handler():
    {code}
with exits_said():
    handler()
"""
    return subprocess.run([sys.executable, "-c", begun], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("status", "code"), [(0, 1), (1, 1), (3, 3)])
def test_an_exit_of_the_programs_own_is_said_and_never_0(status: int, code: int) -> None:
    done = ended(f"os._exit({status})")
    assert done.returncode == code
    assert f"os._exit({status}), at <string>:6 (handler)" in done.stderr


def test_what_the_program_forks_exits_as_it_says() -> None:
    done = ended("pid = os.fork() or os._exit(0); print(os.waitpid(pid, 0)[1])")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "0", "")


def test_afterwards_an_exit_is_as_it_was() -> None:
    before = os._exit
    with exits_said():
        assert os._exit is not before
    assert os._exit is before
