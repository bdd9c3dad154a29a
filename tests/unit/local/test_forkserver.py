from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from semel.errors import SemelError
from semel.local.forkserver import Forked, ForkServer
from semel.local.process import environment_without_settings, is_stopped, start_time

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the forkserver is for Linux")

# A pipeline file that waits as it is imported is a worker that does nothing yet.
SLOW = "import time; print('here', flush=True); time.sleep(60)"
QUICK = "import os; print('directory', os.getcwd(), 'said', os.environ.get('SAID'), flush=True); os._exit(7)"


@pytest.fixture(scope="module")
def forkserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    made = ForkServer(tmp_path_factory.mktemp("forkserver") / "forkserver.log")
    yield made
    made.close()


@pytest.fixture
def fork(forkserver: ForkServer, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """`fork(code, ...)`: a worker whose pipeline file is that code, killed at the end."""
    made: list[Forked] = []

    def start(code: str, **options: bool) -> Forked:
        (tmp_path / "given.py").write_text(code)
        environment = environment_without_settings() | {"SAID": "so"}
        log = tmp_path / "log"
        log.touch()
        made.append(forkserver.fork(["worker", "given:pipeline"], environment, log, directory=tmp_path, **options))
        return made[-1]

    yield start
    for forked in made:
        forked.send(signal.SIGKILL)


async def said(tmp_path: Path, words: str) -> None:
    async with asyncio.timeout(30):
        while words not in (tmp_path / "log").read_text():  # noqa: ASYNC110  (a file tells nobody)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])
async def test_a_worker_has_its_own_directory_environment_log_and_exit_code(
    fork: Callable[..., Forked], tmp_path: Path, fresh: bool
) -> None:
    forked = fork(QUICK, fresh=fresh)

    assert await forked.ended(30) == 7
    assert not forked.running
    assert f"directory {tmp_path} said so" in (tmp_path / "log").read_text()


async def test_its_exit_code_is_the_signal_that_ended_it(fork: Callable[..., Forked], tmp_path: Path) -> None:
    forked = fork(SLOW)
    await said(tmp_path, "here")
    assert await forked.ended(0.05) is None

    forked.send(signal.SIGKILL)

    assert await forked.ended(10) == -signal.SIGKILL
    forked.send(signal.SIGKILL)  # to nobody: the pid may be another's by now


async def test_it_is_stopped_by_a_signal_and_woken_by_one(fork: Callable[..., Forked], tmp_path: Path) -> None:
    forked = fork(SLOW)
    await said(tmp_path, "here")
    assert not await forked.stopped(0.05)

    forked.send(signal.SIGSTOP)
    assert await forked.stopped(10)
    forked.send(signal.SIGCONT)

    deadline = time.monotonic() + 10
    while is_stopped(forked.pid):
        assert time.monotonic() < deadline
    forked.send(signal.SIGKILL)
    assert await forked.ended(10) is not None
    assert not await forked.stopped(60), "waited for what has ended"


async def test_a_module_beside_the_forkserver_is_not_found_by_its_workers(
    fork: Callable[..., Forked], tmp_path: Path
) -> None:
    """What a worker imports is in its own directory or installed; the forkserver's directory is the repository here."""
    assert find_spec("benchmarks") is not None
    forked = fork("import benchmarks.report")

    assert await forked.ended(30) != 0
    assert "imports 'benchmarks', which is not found" in (tmp_path / "log").read_text()


def test_no_worker_outlives_the_process_that_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text(SLOW)
    owner = f"""
import os, signal, time
from importlib.util import find_spec
from pathlib import Path
from semel.local.forkserver import ForkServer
folder = Path({str(tmp_path)!r})
(folder / "log").touch()
forked = ForkServer().fork(["worker", "given:pipeline"], dict(os.environ), folder / "log", directory=folder)
while "here" not in (folder / "log").read_text():
    time.sleep(0.01)
print(forked.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    told = subprocess.run([sys.executable, "-c", owner], capture_output=True, text=True, timeout=60, check=False).stdout
    deadline = time.monotonic() + 10
    while start_time(int(told)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_forkserver_that_has_ended_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    forkserver = ForkServer(tmp_path / "forkserver.log")
    forkserver.start()
    forkserver.close()
    with pytest.raises((SemelError, ValueError), match=r"forkserver\.log|closed"):
        forkserver.fork(["worker"], dict(os.environ), tmp_path / "log")
