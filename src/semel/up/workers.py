"""Worker processes of a run: started as a user starts them, killed, started again, asked over HTTP, stopped.

Nothing of the user's own settings reaches them: SEMEL_BROKER would go before the run's own broker.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from semel.errors import SemelError
from semel.local.process import ProcessId, end, environment_without_settings, launch, send, wait_gone
from semel.web.paths import query, table_path
from semel.web.scan import LIMIT_MAX

ANSWER_S = 2.0
# A page of a merged table asks the other worker too, which may be busy with a batch.
PAGE_S = 30.0


class Worker:
    """One `semel worker`. It lives no longer than this process, however that ends (Linux)."""

    def __init__(self, pipeline: str, name: str, port: int, config: Path, log: Path) -> None:
        self.name = name
        self.port = port
        self.log = log
        self._command = [
            *(sys.executable, "-m", "semel", "worker", pipeline),
            *("--instance", name, "--web-port", str(port), "--config", str(config)),
        ]
        self._process: ProcessId | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    def start(self) -> None:
        environment = environment_without_settings()
        self._process = launch(self._command, self.log, detached=False, environment=environment)

    def kill9(self) -> None:
        """SIGKILL; returns at once."""
        if self._process is not None:
            send(self._process, signal.SIGKILL)

    def wait_gone(self, timeout_s: float = 10.0) -> bool:
        return self._process is None or wait_gone([self._process], timeout_s)

    def log_end(self, lines: int = 15) -> str:
        """The last lines it logged."""
        try:
            text = self.log.read_text(errors="replace").strip()
        except FileNotFoundError:
            text = ""
        return f"the end of {self.log}:\n" + "\n".join(f"  {line}" for line in text.splitlines()[-lines:])

    @staticmethod
    def end_all(workers: Sequence[Worker], grace_s: float) -> None:
        """SIGTERM to all, SIGKILL to those still there after `grace_s`."""
        end([w._process for w in workers if w._process is not None], grace_s)


class Views:
    """The web views as a user's program reads them."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    async def pipeline(self, url: str) -> dict[str, Any] | None:
        """The worker's document about its pipeline; None while it does not answer."""
        try:
            status, found = await self._get(f"{url}/pipelines", ANSWER_S)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        return found[0] if status == 200 and found else None

    async def pages(self, url: str, table: str) -> AsyncIterator[list[tuple[str, Any]]]:
        """Every row of a table as (key, value), page after page. SemelError where the worker refuses."""
        page: str | None = None
        while True:
            asked = query([("limit", LIMIT_MAX), ("page", page)])
            try:
                status, found = await self._get(url + table_path(table) + asked, PAGE_S)
            except (aiohttp.ClientError, TimeoutError, ValueError) as lost:
                raise SemelError(
                    f"table {table!r} cannot be read from {url}: {str(lost) or type(lost).__name__}"
                ) from lost
            if status != 200:
                raise SemelError(f"table {table!r} cannot be read from {url}: {found.get('error', status)}")
            yield [(row["key"], row["value"]) for row in found["rows"]]
            page = found["next"]
            if page is None:
                return

    async def close(self) -> None:
        await self._session.close()

    async def _get(self, url: str, timeout_s: float) -> tuple[int, Any]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.get(url, timeout=timeout, headers={"Accept": "application/json"}) as answer:
            return answer.status, await answer.json()


async def gone(worker: Worker) -> None:
    """Until the process is gone."""
    while not await asyncio.to_thread(worker.wait_gone, 5.0):
        continue
