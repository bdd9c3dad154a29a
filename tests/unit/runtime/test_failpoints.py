"""Failpoints: nothing while they are not armed, and exactly what was asked for when they are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import semel
from semel.errors import ConfigError
from semel.runtime.failpoints import NAMES, SWITCHES, Failpoints, check_switches

PASSING = """
import asyncio
from semel.runtime.failpoints import Failpoints

async def main():
    passing = Failpoints.from_environment()
    for n in range(1, 4):
        print(n, flush=True)
        await passing("commit.after_end")
        await passing("revoke.end")

asyncio.run(main())
"""


def run(armed: str | None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "SEMEL_FAILPOINT"}
    if armed is not None:
        env["SEMEL_FAILPOINT"] = armed
    return subprocess.run([sys.executable, "-c", PASSING], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("armed", "printed", "code"),
    [
        (None, ["1", "2", "3"], 0),
        ("", ["1", "2", "3"], 0),
        ("commit.after_end", ["1"], -signal.SIGKILL),
        ("commit.after_end:kill:2", ["1", "2"], -signal.SIGKILL),
        ("revoke.end:exit:3", ["1", "2", "3"], 3),
        ("commit.after_end:exit:4", ["1", "2", "3"], 0),
        ("begin.after_init", ["1", "2", "3"], 0),
    ],
)
def test_a_process_ends_where_it_was_told_to(armed: str | None, printed: list[str], code: int) -> None:
    done = run(armed)
    assert (done.stdout.split(), done.returncode) == (printed, code)


def test_a_process_stops_where_it_was_told_to_and_can_go_on() -> None:
    env = {**os.environ, "SEMEL_FAILPOINT": "commit.after_end:stop:2"}
    with subprocess.Popen([sys.executable, "-c", PASSING], env=env, stdout=subprocess.PIPE, text=True) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        os.kill(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=30)[0].split() == ["1", "2", "3"]
    assert process.returncode == 0


@pytest.mark.parametrize(
    "armed",
    ["commit.after_endd", "commit.after_end:explode", "commit.after_end:kill:0", "commit.after_end:kill:often",
     "commit.after_end:kill:1:2", ":"],
)  # fmt: skip
def test_what_cannot_be_armed_is_refused_and_the_points_are_named(armed: str) -> None:
    with pytest.raises(ConfigError, match=r"points are .*commit\.after_end.*actions kill, stop, exit"):
        Failpoints(armed)


async def test_a_hook_is_awaited_each_time_its_point_is_passed() -> None:
    passing, seen = Failpoints(), list[int]()

    async def hook() -> None:
        seen.append(len(seen))

    passing.hooks["commit.after_end"] = hook
    for name in ("commit.after_end", "commit.before_store", "commit.after_end"):
        await passing(name)
    assert seen == [0, 1]


def test_every_point_that_is_passed_has_a_name_in_the_list_and_every_name_is_passed() -> None:
    source = "".join(p.read_text() for p in Path(semel.__file__).parent.rglob("*.py") if p.name != "failpoints.py")
    assert set(re.findall(r'pass(?:ing)?\("([a-z_.]+)"\)', source)) == set(NAMES)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize(
    "bootstrap", ["kafka.example:9092", "10.0.0.1:9092", "localhost:1,kafka:2", "[2001:db8::1]:9092"]
)
def test_a_worker_of_brokers_elsewhere_refuses_what_breaks_it_on_purpose(name: str, bootstrap: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is set: .* on purpose.* is not; unset {name}"):
        check_switches({name: "commit.after_end"}, bootstrap)
    check_switches({name: ""}, bootstrap)
    check_switches({}, bootstrap)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("bootstrap", ["localhost:9092", "127.0.0.1:1,127.0.0.2:2", "[::1]:9092"])
def test_a_worker_of_brokers_on_this_machine_says_aloud_what_breaks_it_on_purpose(
    name: str, bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_switches({name: "commit.after_end:stop"}, bootstrap)
    [said] = caplog.records
    assert said.levelname == "WARNING"
    assert said.getMessage().startswith(f"{name}=commit.after_end:stop is set: this worker")
