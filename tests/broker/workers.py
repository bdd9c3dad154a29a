"""Real workers: `semel worker` as a process of its own, to be killed, frozen, woken and asked."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from semel.local import worker_process
from semel.local.forkserver import ForkServer

FORK_SERVER = ForkServer()
SEMEL = Path(sys.executable).with_name("semel")
PROJECT = Path(__file__).parent / "pipelines"
REFUSAL, USAGE, UNPROVABLE = 1, 2, 5
START_S = 60.0  # two cores, shared: a start is mostly imports

_WEB = re.compile(r"web views on (http://\S+)")


class WorkerProcess(worker_process.WorkerProcess):
    """One worker: a name, a state directory, settings. What does not come of it fails the test."""

    def __init__(
        self,
        target: str,
        *,
        instance: str,
        bootstrap: str,
        state_dir: Path,
        log_file: Path,
        environment: dict[str, str],
    ) -> None:
        settings = {"SEMEL_BROKER": bootstrap, "SEMEL_STATE_DIR": str(state_dir), **environment}
        super().__init__(FORK_SERVER, target, instance, log_file=log_file, environment=settings, directory=PROJECT)
        self.instance = instance
        self.state_dir = state_dir
        self._url = ""

    # -- its life

    def start(
        self, *arguments: str, failpoint: str = "", web_port: int = 0, fresh: bool = False, **environment: str
    ) -> WorkerProcess:
        self._url = ""
        web = ("--web-port", str(web_port))
        return super().start(*web, *arguments, failpoint=failpoint, fresh=fresh, **environment)

    def kill9(self) -> None:
        self.send(signal.SIGKILL)
        while self.running:
            time.sleep(0.002)

    def term(self) -> None:
        self.send(signal.SIGTERM)

    async def stopped(self, within_s: float = 30.0) -> int:
        """SIGTERM, and its exit code."""
        self.term()
        return await self.ended(within_s)

    async def ended(self, within_s: float = 30.0) -> int:
        """Waits until it ends by itself; its exit code."""
        code = await super().ended(within_s)
        if code is None:
            pytest.fail(f"worker {self.instance} still runs after {within_s} s\n{self.log_end()}")
        return code

    async def refuses(self, *words: str, code: int = REFUSAL) -> None:
        """Waits until it ends with `code`; its last words name the thing and the way out."""
        assert await self.ended() == code, self.log_end()
        error = next(line for line in reversed(self.log.splitlines()) if "ERROR" in line)
        for word in words:
            assert word in error, self.log_end()
        assert "unexpected" not in self.log, self.log_end()

    async def frozen(self, within_s: float = 30.0) -> None:
        """Waits until a failpoint has stopped it."""
        if not await self.froze(within_s):
            assert self.running, f"worker {self.instance} ended instead of stopping\n{self.log_end()}"
            pytest.fail(f"worker {self.instance} never came to its failpoint\n{self.log_end()}")

    # -- what it says

    @property
    def whole_log(self) -> str:
        return self.log_from(0)

    async def said(self, pattern: str, within_s: float = START_S) -> re.Match[str]:
        """Waits for a line of its log."""
        deadline = time.monotonic() + within_s
        while True:
            if found := re.search(pattern, self.log):
                return found
            if not self.running or time.monotonic() > deadline:
                pytest.fail(f"worker {self.instance} did not say {pattern!r}\n{self.log_end()}")
            await asyncio.sleep(0.02)

    # -- its web views

    async def url(self) -> str:
        if not self._url:
            self._url = (await self.said(_WEB.pattern))[1]
        return self._url

    async def get(self, path: str, **query: str) -> tuple[int, Any]:
        """Status and JSON of one of its views; status 0 where it does not answer."""
        timeout = aiohttp.ClientTimeout(total=5)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get((await self.url()) + path, params=query) as answer,
            ):
                return answer.status, json.loads(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return 0, None

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        async with aiohttp.ClientSession() as session, session.get((await self.url()) + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(_total)?[{{ ]", line))

    async def ready(self, within_s: float = START_S) -> float:
        """Waits until /readyz says so; the seconds that took."""
        began = time.monotonic()
        while True:
            status, said = await self.get("/readyz")
            if status == 200:
                return time.monotonic() - began
            assert self.running, f"worker {self.instance} ended with {self.exit_code}\n{self.log_end()}"
            if time.monotonic() - began > within_s:
                pytest.fail(f"worker {self.instance} is not ready: {said}\n{self.log_end()}")
            await asyncio.sleep(0.05)

    async def rows(self, table: str) -> dict[str, Any]:
        """All rows of a table, over all workers, as a person would page through them; what restores is waited for."""
        rows: dict[str, Any] = {}
        query = {"limit": "1000"}
        deadline = time.monotonic() + START_S
        while True:
            status, page = await self.get(f"/tables/{table}", **query)
            if status in (0, 502, 503) and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
                continue
            assert status == 200, (status, page)
            rows |= {row["key"]: row["value"] for row in page["rows"]}
            if page["next"] is None:
                return rows
            query["page"] = page["next"]

    async def row(self, table: str, key: str) -> tuple[int, Any]:
        return await self.get(f"/tables/{table}/{quote(key, safe='')}")
