"""Workers without the wait: a process that has imported everything forks each worker, which then runs `semel worker`.

A start is two seconds of imports on one core, and these tests start hundreds of workers. What is forked is a process like
any other: it has its own arguments, environment, directory and log, and dies by any signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SEMEL = Path(sys.executable).with_name("semel")

_PR_SET_PDEATHSIG = 1


class Nursery:
    """One at a time; started when the first worker is asked for, gone when this process is."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def fork(
        self, arguments: list[str], *, directory: Path, environment: dict[str, str], log: Path, fresh: bool
    ) -> int:
        """Run `semel ARGUMENTS`; returns its pid. `fresh`: with imports of its own, as from a command line."""
        asked = {"arguments": arguments, "directory": str(directory), "environment": environment, "log": str(log)}
        return self._ask({"fork": {**asked, "fresh": fresh}})

    def exit_code(self, pid: int) -> int | None:
        """None while it runs; negative: the signal that ended it. Asked for once more after that, it is an error."""
        return self._ask({"exit_code": pid})

    def _ask(self, question: dict[str, object]) -> Any:
        if self._process is None:
            command = [sys.executable, __file__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Answer questions, a JSON line each, until standard input ends."""
    import semel.cli.worker
    import semel.faust_.app
    import semel.kafka
    import semel.runtime.worker
    import semel.web.server  # noqa: F401

    for line in sys.stdin:
        question = json.loads(line)
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


def become(arguments: list[str], directory: str, environment: dict[str, str], log: str, fresh: bool) -> None:
    """Be `semel ARGUMENTS` from here on; never returns."""
    # The nursery ends with the tests, however they end, and no worker outlives it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)
    if fresh:
        os.execve(SEMEL, [str(SEMEL), *arguments], environment)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["semel", *arguments]
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
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
