"""Workers without the wait: a process that has imported everything forks each worker, which then runs `semel worker`.

A start is two seconds of imports on one core, and a run starts hundreds of workers. What is forked is a process like any
other: it has its own arguments, environment and log, is known by its pid, and dies by any signal. `python -m` this module
is the process; `Nursery` is how it is asked.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from semel.errors import SemelError

_PR_SET_PDEATHSIG = 1


class Nursery:
    """Gone when this process is, and every worker with it (Linux)."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Its imports go on while this returns."""
        with self._log.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                start_new_session=True,
            )

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Run `semel ARGUMENTS` in the current directory; returns its pid, which stays its own until `exit_code`."""
        asked = {"arguments": list(arguments), "environment": dict(environment), "log": str(log)}
        return self._ask({"fork": asked})

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
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SemelError(f"the process that starts the workers has ended; see {self._log}")
        return json.loads(answer)


def serve() -> None:
    """Answer questions, a JSON line each, until standard input ends."""
    for name in ("cli.worker", "faust_.app", "kafka", "runtime.worker", "web.server"):
        importlib.import_module(f"semel.{name}")
    for line in sys.stdin:
        question: dict[str, Any] = json.loads(line)
        answer: int | None = None
        if "fork" in question:
            answer = os.fork()
            if answer == 0:
                become(**question["fork"])
        else:
            pid, status = os.waitpid(question["exit_code"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def become(arguments: list[str], environment: dict[str, str], log: str) -> NoReturn:
    """Be `semel ARGUMENTS` from here on."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["semel", *arguments]
    code = 1
    try:
        from semel.cli import main

        main()
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
