"""Worker processes of a run, to be killed, frozen, woken, told to end and started again. Signals go to these pids only."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from semel.local import ports
from semel.local.nursery import Forked, Nursery
from semel.local.process import environment_without_settings
from semel.runtime import oddcode
from semel.runtime.clock import OFFSET


class WorkerProcess:
    """One `semel worker` under a name and port of its own. It can be started again; its log goes on in one file.

    `odd_code`: the file that says whether its agents end oddly. `expected_end`: somebody here ended it, or armed it to
    end. `frozen`: stopped by a signal.
    """

    def __init__(
        self,
        nursery: Nursery,
        target: str,
        name: str,
        *,
        port: int,
        bootstrap: str,
        folder: Path,
        settings: Mapping[str, str],
    ) -> None:
        self.name = name
        self.port = port
        self.log = folder / "logs" / f"{name}.log"
        self.state_dir = folder / "state" / name
        self.expected_end = True
        self.frozen = False
        self.starts = 0
        self._nursery = nursery
        self._target = target
        self._bootstrap = bootstrap
        self._folder = folder
        self._settings = dict(settings)
        self._process: Forked | None = None
        self._clock = folder / "state" / f"{name}.clock"
        self.set_clock(0)
        self.odd_code = folder / "state" / f"{name}.odd"
        oddcode.order(self.odd_code, 0.0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, or before it was started; negative: the signal that ended it."""
        return None if self._process is None else self._process.exit_code

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    # -- its life

    def start(self, *, failpoint: str = "") -> None:
        """Start it, again where it ran before. `failpoint` as `SEMEL_FAILPOINT` has it."""
        assert not self.running, f"{self.name} runs"
        environment = environment_without_settings()
        environment |= {"SEMEL_BROKER": self._bootstrap, "SEMEL_STATE_DIR": str(self.state_dir), **self._settings}
        if failpoint:
            environment["SEMEL_FAILPOINT"] = failpoint
        environment["SEMEL_CLOCK_OFFSET_MS"] = str(self._clock)
        environment["SEMEL_ODD_CODE"] = str(self.odd_code)
        config = self._folder / "worker.toml"
        command = ["worker", self._target, "--instance", self.name, "--web-port", str(self.port)]
        command += ["--config", str(config)]
        self._process = self._nursery.fork(command, environment, self.log)
        self.frozen = False
        self.expected_end = bool(failpoint)
        self.starts += 1

    def set_clock(self, offset_ms: int) -> None:
        """Its wall clock is off by so much from now on, whether it runs or is yet to start."""
        # In place: a running process has mapped these bytes.
        at = os.open(self._clock, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.pwrite(at, OFFSET.pack(offset_ms), 0)
        finally:
            os.close(at)

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send(number)

    def freeze(self) -> None:
        self.frozen = True
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.frozen = False
        self.send(signal.SIGCONT)

    async def kill9(self) -> None:
        self.expected_end = True
        self.send(signal.SIGKILL)
        await self.ended(10)

    async def term(self, within_s: float) -> int | None:
        """SIGTERM; its exit code, None where it is still there after that time."""
        self.expected_end = True
        self.send(signal.SIGTERM)
        return await self.ended(within_s)

    async def ended(self, within_s: float) -> int | None:
        """Its exit code, None where it is still there after that time."""
        return None if self._process is None else await self._process.ended(within_s)

    async def stopped(self, within_s: float) -> bool:
        """Whether a failpoint has frozen it within that time."""
        if self._process is None or not await self._process.stopped(within_s):
            return False
        self.frozen = True
        return True

    def lose_disk(self) -> None:
        """Its state directory is gone; a mount stays, empty. Only while it does not run."""
        assert not self.running
        for inner in self.state_dir.glob("*"):
            shutil.rmtree(inner, ignore_errors=True)

    def twin(self) -> WorkerProcess:
        """Another process of the same name, on another disk and port: what a scheduler starts for one it thinks lost."""
        made = WorkerProcess(
            self._nursery,
            self._target,
            self.name,
            port=ports.choose(1)[0],
            bootstrap=self._bootstrap,
            folder=self._folder,
            settings=self._settings,
        )
        made.state_dir = self._folder / "state" / f"{self.name}-{time.monotonic_ns()}"
        return made

    @property
    def log_bytes(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def log_from(self, offset: int) -> str:
        with self.log.open("rb") as said:
            said.seek(offset)
            return said.read().decode(errors="replace")

    def log_end(self, lines: int = 12) -> str:
        try:
            said = self.log.read_text(errors="replace").strip().splitlines()
        except FileNotFoundError:
            said = []
        return "\n".join(f"  {line}" for line in said[-lines:])
