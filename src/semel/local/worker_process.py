"""One worker of a run, as a process: started, killed, frozen, woken, started again, and what it logged.

Nothing of the caller's own settings reaches it: SEMEL_BROKER would go before the run's own broker.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from semel.local.forkserver import Forked, ForkServer
from semel.local.process import environment_without_settings


class WorkerProcess:
    """`semel worker TARGET --instance NAME`. It can be started again; its log goes on in one file.

    `environment`: what it has of its own, settings mostly; `arguments`: the same on its command line. `directory`: where it
    runs, else in the current one.
    """

    def __init__(
        self,
        forkserver: ForkServer,
        target: str,
        name: str,
        *,
        log_file: Path,
        environment: Mapping[str, str],
        arguments: Sequence[str] = (),
        directory: Path | None = None,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._forkserver = forkserver
        self._target = target
        self._environment = dict(environment)
        self._arguments = tuple(arguments)
        self._directory = directory
        self._process: Forked | None = None
        # Where in the log its last start begins.
        self._started_at = 0

    @property
    def pid(self) -> int:
        """0 before it was started."""
        return 0 if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, or before it was started; negative: the signal that ended it."""
        return None if self._process is None else self._process.exit_code

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    # -- its life

    def start(self, *arguments: str, failpoint: str = "", fresh: bool = False, **environment: str) -> Self:
        """Start it, again where it ran before, with more arguments. `failpoint` as `SEMEL_FAILPOINT` has it; `fresh` as the
        forkserver has it.
        """
        assert not self.running, f"{self.name} runs"
        settings = environment_without_settings() | self._environment | environment
        if failpoint:
            settings["SEMEL_FAILPOINT"] = failpoint
        self._started_at = self.log_bytes
        command = ["worker", self._target, "--instance", self.name, *self._arguments, *arguments]
        self._process = self._forkserver.fork(command, settings, self.log_file, directory=self._directory, fresh=fresh)
        return self

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self._process is not None:
            self._process.send(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    async def ended(self, within_s: float) -> int | None:
        """Its exit code, None where it is still there after that time."""
        return None if self._process is None else await self._process.ended(within_s)

    async def froze(self, within_s: float) -> bool:
        """Whether a failpoint has frozen it within that time."""
        return self._process is not None and await self._process.stopped(within_s)

    # -- what it says

    @property
    def log_bytes(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def log_from(self, offset: int) -> str:
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    @property
    def log(self) -> str:
        """What it said since its last start."""
        return self.log_from(self._started_at)

    def log_end(self, lines: int = 40) -> str:
        """The last lines it logged, under the file's name."""
        return f"the end of {self.log_file}:\n" + "\n".join(
            f"  {line}" for line in self.log_from(0).strip().splitlines()[-lines:]
        )


def end_all(workers: Iterable[WorkerProcess], grace_s: float) -> None:
    """SIGTERM to all, SIGKILL to those still there after `grace_s`; returns when all are gone."""
    workers = list(workers)
    for number, within_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        for worker in workers:
            worker.send(number)
        deadline = time.monotonic() + within_s
        while any(worker.running for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.02)
