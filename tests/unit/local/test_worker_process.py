"""Worker processes of a run: whose settings they have, and what is known of them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.local.forkserver import ForkServer
from semel.local.worker_process import WorkerProcess, end_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the forkserver is for Linux")

SHOW = (
    "import json, os; print(json.dumps({n: v for n, v in os.environ.items() if 'SEMEL' in n.upper() or n == 'MINE'}), flush=True)"
    "; os._exit(0)"
)
STAYS = "import signal, time; {}; print('here', flush=True); time.sleep(60)"
DEAF = STAYS.format("signal.signal(signal.SIGTERM, signal.SIG_IGN)")


@pytest.fixture(scope="module")
def forkserver() -> Iterator[ForkServer]:
    made = ForkServer()
    yield made
    made.close()


def worker_of(forkserver: ForkServer, tmp_path: Path, code: str, name: str = "w1") -> WorkerProcess:
    (tmp_path / f"{name}.py").write_text(code)
    return WorkerProcess(
        forkserver,
        f"{name}:pipeline",
        name,
        log_file=tmp_path / f"{name}.log",
        environment={"SEMEL_STATE_DIR": "here"},
        directory=tmp_path,
    )


async def said(worker: WorkerProcess, words: str) -> None:
    async with asyncio.timeout(60):
        while words not in worker.log:  # noqa: ASYNC110  (a file tells nobody)
            await asyncio.sleep(0.01)


async def test_no_setting_of_the_caller_reaches_a_worker_of_a_run(
    forkserver: ForkServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SEMEL_BROKER would go before the run's own config file, and lead the workers to another cluster."""
    monkeypatch.setenv("SEMEL_BROKER", "kafka://127.0.0.1:1")
    monkeypatch.setenv("semel_web_token", "secret")
    monkeypatch.setenv("MINE", "kept")
    worker = worker_of(forkserver, tmp_path, SHOW)
    worker.start(failpoint="commit.after_produce:kill")
    assert await worker.ended(60) == 0
    own = {"MINE": "kept", "SEMEL_STATE_DIR": "here", "SEMEL_FAILPOINT": "commit.after_produce:kill"}
    assert json.loads(worker.log) == own


async def test_a_log_goes_on_and_the_last_start_is_known(forkserver: ForkServer, tmp_path: Path) -> None:
    worker = worker_of(forkserver, tmp_path, "")
    assert (worker.pid, worker.exit_code, worker.running, worker.log) == (0, None, False, "")
    for text in ("once", "again"):
        (tmp_path / "w1.py").write_text(f"import os; print({text!r}, flush=True); os._exit(7)")
        worker.start()
        assert await worker.ended(60) == 7
    assert worker.log == "again\n"
    assert worker.log_from(0) == "once\nagain\n"
    assert worker.log_end(1) == f"the end of {worker.log_file}:\n  again"


async def test_workers_end_by_sigterm_and_who_does_not_is_killed(forkserver: ForkServer, tmp_path: Path) -> None:
    willing = worker_of(forkserver, tmp_path, STAYS.format("..."), "willing")
    deaf = worker_of(forkserver, tmp_path, DEAF, "deaf")
    for worker in (willing, deaf):
        worker.start()
    await asyncio.gather(said(willing, "here"), said(deaf, "here"))
    await asyncio.to_thread(end_all, [willing, deaf], 0.5)
    assert (willing.exit_code, deaf.exit_code) == (-signal.SIGTERM, -signal.SIGKILL)
