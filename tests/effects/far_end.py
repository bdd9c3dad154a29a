"""The far end of the tests: a file, to which each time that the effect happens adds a line; and a process that carries it out.

`python -m tests.effects.far_end STORE FILE KEY MODE`: `STORE` as `stores` has it, or `inbox=URL` for a row in the database of
the inbox. MODE `run` prints the outcome; `before`, `during` and `after` say it and wait to be killed there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from semel import Inbox
from semel.effects import elsewhere
from semel.effects.effect import effect
from tests.effects import stores

ROOT = Path(__file__).parents[2]


def happen(file: Path, key: str) -> dict[str, str]:
    with file.open("a") as far:
        far.write(f"{key}\n")
        far.flush()
        os.fsync(far.fileno())
    return {"receipt": key}


def times(file: Path, key: str) -> int:
    return file.read_text().splitlines().count(key) if file.exists() else 0


def started(store: str, file: Path, key: str, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.effects.far_end", store, str(file), key, mode],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed(store: str, file: Path, key: str, mode: str) -> None:
    """A process was killed (SIGKILL) at that point."""
    process = started(store, file, key, mode)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{mode}\n"
    process.kill()
    process.wait()
    process.stdout.close()


def _halt(mode: str) -> None:
    sys.stdout.write(f"{mode}\n")
    sys.stdout.flush()
    time.sleep(60)
    os._exit(9)


def _elsewhere(store: str, file: Path, key: str, mode: str) -> object:
    wanted = effect(key, {"for": key})

    def call() -> dict[str, str]:
        if mode == "before":
            _halt(mode)
        receipt = happen(file, key)
        if mode == "during":
            _halt(mode)
        return receipt

    with stores.session(store, wanted) as session:
        done = elsewhere.run(session, elsewhere.Plan(wanted, call))
        if mode == "after":
            _halt(mode)
    return done.outcome


def _in_database(url: str, key: str, mode: str) -> object:
    inbox = Inbox(url)
    once = inbox.once(key, {"for": key})
    with once as connection:
        if mode == "before":
            _halt(mode)
        connection.execute("INSERT INTO rows (key) VALUES (%s)", (key,))
        once.outcome = {"receipt": key}
        if mode == "during":
            _halt(mode)
    if mode == "after":
        _halt(mode)
    inbox.close()
    return once.outcome


if __name__ == "__main__":
    store, file, key, mode = sys.argv[1:]
    kind, _, place = store.partition("=")
    result = _in_database(place, key, mode) if kind == "inbox" else _elsewhere(store, Path(file), key, mode)
    sys.stdout.write(f"{result}\n")
