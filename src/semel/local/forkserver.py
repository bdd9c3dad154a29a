"""Workers without the wait: a process that has imported everything forks each worker, which then runs `semel worker`.

A start is two seconds of imports on one core, and a run or a test suite starts hundreds of workers. What is forked is a
process like any other: it has its own arguments, environment, directory and log, is known by its pid, and dies by any
signal. `python -m` this module is the process; `ForkServer` is how it is asked.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from semel.errors import SemelError
from semel.local.process import is_stopped

_LOOK_S = 0.02
_PR_SET_PDEATHSIG = 1


class ForkServer:
    """Gone when this process is, and every worker with it (Linux). `log`: where it writes, else to standard error."""

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Its imports go on while this returns. Without it, the first fork starts it."""
        log_file = None if self._log is None else self._log.open("ab")
        try:
            self._process = subprocess.Popen(
                # -P: a worker finds nothing in the directory of this process, only in its own.
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                text=True,
                start_new_session=True,
            )
        finally:
            if log_file is not None:
                log_file.close()

    def fork(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        directory: Path | None = None,
        fresh: bool = False,
    ) -> Forked:
        """Run `semel ARGUMENTS` in `directory`, else in the current one; what it writes is appended to `log`.

        `fresh`: with imports of its own, as from a command line.
        """
        where = Path.cwd() if directory is None else directory
        asked = {"arguments": list(arguments), "environment": dict(environment), "log": str(log.absolute())}
        return Forked(self, self._ask({"fork": {**asked, "directory": str(where), "fresh": fresh}}))

    def exit_code(self, pid: int) -> int | None:
        """None while it runs; negative: the signal that ended it. Asked for once more after that, it is an error."""
        return self._ask({"exit_code": pid})

    def close(self) -> None:
        """Ends it, and with it the workers that still run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def _ask(self, question: dict[str, object]) -> Any:
        if self._process is None:
            self.start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            where = "what it said stands above" if self._log is None else f"see {self._log}"
            raise SemelError(f"the process that starts the workers has ended; {where}")
        return json.loads(answer)


class Forked:
    """One worker. Its pid cannot be another process's before its end was asked for here."""

    def __init__(self, forkserver: ForkServer, pid: int) -> None:
        self.pid = pid
        self._forkserver = forkserver
        self._code: int | None = None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        if self._code is None:
            self._code = self._forkserver.exit_code(self.pid)
        return self._code

    @property
    def running(self) -> bool:
        return self.exit_code is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.running:
            os.kill(self.pid, number)

    async def ended(self, within_s: float) -> int | None:
        """Its exit code, None where it is still there after that time."""
        deadline = time.monotonic() + within_s
        while (code := self.exit_code) is None and time.monotonic() < deadline:  # noqa: ASYNC110  (asked, not told)
            await asyncio.sleep(_LOOK_S)
        return code

    async def stopped(self, within_s: float) -> bool:
        """Whether a SIGSTOP stops it within that time (Linux); False at once where it ends instead."""
        deadline = time.monotonic() + within_s
        while self.running and time.monotonic() < deadline:
            if is_stopped(self.pid):
                return True
            await asyncio.sleep(_LOOK_S)
        return False


def serve() -> None:
    """Answer questions, a JSON line each, until standard input ends."""
    for name in ("cli.worker", "kafka", "worker.main", "web.server"):
        importlib.import_module(f"semel.{name}")
    here = os.getpid()
    for line in sys.stdin:
        question: dict[str, Any] = json.loads(line)
        answer: int | None = None
        if "fork" in question:
            answer = os.fork()
            if answer == 0:
                # The forkserver ends with the process that asks it, however that ends, and no worker outlives it.
                if sys.platform == "linux":
                    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                    if os.getppid() != here:
                        os._exit(1)
                become(**question["fork"])
        else:
            pid, status = os.waitpid(question["exit_code"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def become(arguments: list[str], environment: dict[str, str], log: str, directory: str, fresh: bool) -> NoReturn:
    """Be `semel ARGUMENTS` from here on."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)
    if fresh:
        os.execv(sys.executable, [sys.executable, "-m", "semel", *arguments])
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["semel", *arguments]
    code = 1
    try:
        runpy.run_module("semel", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
