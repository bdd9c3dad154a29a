"""Worker processes of a run, with what chaos does to one: its clock, its code, its disk, another in its place."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

from semel.local import ports
from semel.local.forkserver import ForkServer
from semel.local.worker_process import WorkerProcess
from semel.runtime.clock import OFFSET
from semel.stages.agent import handler_faults


class Site(NamedTuple):
    """What all workers of a run have in common. `settings`: of their environment."""

    forkserver: ForkServer
    target: str
    bootstrap: str
    folder: Path
    settings: Mapping[str, str]


class ChaosWorker(WorkerProcess):
    """A worker under a name and port of its own.

    `odd_code`: the file that says whether its agents end oddly. `expected_end`: somebody here ended it, or armed it to
    end. `frozen`: stopped by a signal.
    """

    def __init__(self, site: Site, name: str, port: int, *, state: str = "") -> None:
        folder = site.folder.absolute()
        self.state_dir = folder / "state" / (state or name)
        self.odd_code = folder / "state" / f"{name}.odd"
        self.url = f"http://127.0.0.1:{port}"
        self.expected_end = True
        self.frozen = False
        self._site = site
        self._clock = folder / "state" / f"{name}.clock"
        environment = {
            "SEMEL_BROKER": site.bootstrap,
            "SEMEL_STATE_DIR": str(self.state_dir),
            "SEMEL_CLOCK_OFFSET_MS": str(self._clock),
            "SEMEL_ODD_CODE": str(self.odd_code),
            **site.settings,
        }
        arguments = ("--web-port", str(port), "--config", str(folder / "worker.toml"))
        log = folder / "logs" / f"{state or name}.log"
        super().__init__(site.forkserver, site.target, name, log_file=log, environment=environment, arguments=arguments)
        self.set_clock(0)
        handler_faults.order(self.odd_code, 0.0)

    def start(self, *arguments: str, failpoint: str = "", fresh: bool = False, **environment: str) -> Self:
        super().start(*arguments, failpoint=failpoint, fresh=fresh, **environment)
        self.frozen = False
        self.expected_end = bool(failpoint)
        return self

    def set_clock(self, offset_ms: int) -> None:
        """Its wall clock is off by so much from now on, whether it runs or is yet to start."""
        # In place: a running process has mapped these bytes.
        at = os.open(self._clock, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.pwrite(at, OFFSET.pack(offset_ms), 0)
        finally:
            os.close(at)

    def freeze(self) -> None:
        self.frozen = True
        super().freeze()

    def thaw(self) -> None:
        self.frozen = False
        super().thaw()

    async def froze(self, within_s: float) -> bool:
        self.frozen = await super().froze(within_s)
        return self.frozen

    async def kill9(self) -> None:
        self.expected_end = True
        self.send(signal.SIGKILL)
        await self.ended(10)

    async def term(self, within_s: float) -> int | None:
        """SIGTERM, and SIGKILL after that time: then None, else its exit code."""
        self.expected_end = True
        self.send(signal.SIGTERM)
        code = await self.ended(within_s)
        if code is None:
            await self.kill9()
        return code

    def lose_disk(self) -> None:
        """Its state directory is gone; a mount stays, empty. Only while it does not run."""
        assert not self.running
        for inner in self.state_dir.glob("*"):
            shutil.rmtree(inner, ignore_errors=True)

    def twin(self) -> ChaosWorker:
        """Another process of the same name, on another disk and port and with a log of its own: what a scheduler starts for one
        it thinks lost.
        """
        return ChaosWorker(self._site, self.name, ports.choose(1)[0], state=f"{self.name}-{time.monotonic_ns()}")
