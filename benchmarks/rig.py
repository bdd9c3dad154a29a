"""What is measured, as it really runs: a broker of its own, `semel worker` processes, and what they cost.

Everything lives in one temporary folder and ends with the `with` block; nothing here looks inside a worker except by
its web views and by /proc.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from benchmarks.report import load_average, say
from semel.local import ports
from semel.local.kafka import LocalKafka
from semel.local.process import environment_without_settings

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.05
# A worker that has done nothing for so long will do nothing more.
STALLED_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """The run cannot be measured; says why, with the end of the worker's log."""


class Place(NamedTuple):
    """Where one round takes place. `load`: the load average just before it."""

    broker: str
    folder: Path
    load: float


@contextmanager
def place() -> Iterator[Place]:
    """A fresh folder with a fresh broker, its code optimised fully, as under a long load."""
    load = load_average()
    with (
        tempfile.TemporaryDirectory(prefix="semel-benchmark-", ignore_cleanup_errors=True) as folder,
        LocalKafka(Path(folder) / "kafka", full_jit=True, heap_mb=512) as kafka,
    ):
        yield Place(kafka.bootstrap, Path(folder), load)


class Cpu(NamedTuple):
    """Seconds of user and system time: of the whole process, and of its main thread, which is where Python runs."""

    process: float
    main: float


class Memory(NamedTuple):
    """In MB (10^6 bytes). `peak` is the greatest `rss` of the process's life, `anonymous` what no file backs."""

    rss: float
    peak: float
    anonymous: float


class Worker:
    """One `semel worker` process. Ends with its `with` block, by SIGKILL if need be."""

    def __init__(
        self, pipeline: str, at: Place, *, instance: str = "w1", settings: Mapping[str, object] | None = None
    ) -> None:
        self.pipeline = pipeline
        self.instance = instance
        self.state_dir = at.folder / "state"
        self.log = at.folder / f"{instance}.log"
        self._settings = {"BROKER": at.broker, "STATE_DIR": self.state_dir, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        # Kept over restarts, as a deployment does: the URL is part of what a member says of itself to the group.
        self._port = ports.choose(1)[0]
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.alive:
            self.stop()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("semel")), "worker", self.pipeline]
        command += ["--instance", self.instance, "--web-port", str(self._port)]
        environment = environment_without_settings()
        environment |= {f"SEMEL_{name.upper()}": str(value) for name, value in self._settings.items()}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def stop(self, within_s: float = 40.0) -> None:
        """SIGTERM and wait; SIGKILL to one that does not go."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill9()

    def kill9(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    # -- asking

    def get(self, path: str) -> Any:
        """The JSON of a web view; None while nobody answers, or answers 503."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return orjson.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise Failed(f"{path} answered {error.code}: {error.read(500)!r}. {self.log_end()}") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if not self.alive:
                raise Failed(f"the worker ended. {self.log_end()}") from None
            return None

    def view(self) -> dict[str, Any] | None:
        """Its entry of /pipelines."""
        found = self.get("/pipelines")
        return found[0] if found else None

    def wait(self, what: str, holds: Callable[[], Any], *, within_s: float = 120.0, poll_s: float = POLL_S) -> Any:
        """What `holds` answers once that is true."""
        ends = time.monotonic() + within_s
        while not (found := holds()):
            if not self.alive:
                raise Failed(f"the worker ended. {self.log_end()}")
            if time.monotonic() > ends:
                raise Failed(f"not {what} within {within_s:g} s. {self.log_end()}")
            time.sleep(poll_s)
        return found

    def wait_ready(self) -> None:
        self.wait("ready", lambda: (self.get("/readyz") or {}).get("ok"))

    def log_end(self, lines: int = 20) -> str:
        text = self.log.read_text(errors="replace").strip().splitlines()[-lines:]
        return "The end of its log:\n" + "\n".join(text)

    # -- what it costs

    def cpu(self) -> Cpu:
        return Cpu(_cpu(f"/proc/{self.pid}/stat"), _cpu(f"/proc/{self.pid}/task/{self.pid}/stat"))

    def memory(self) -> Memory:
        said: dict[str, float] = {}
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if rest.endswith("kB"):
                said[name] = round(int(rest.split()[0]) * 1024 / 1e6, 1)
        return Memory(said["VmRSS"], said["VmHWM"], said["RssAnon"])


class Run(NamedTuple):
    """A worker's way through its input. `view`: what it said of itself at the end."""

    events: int
    seconds: float
    events_per_s: int
    cpu_us_per_event: float
    main_us_per_event: float
    view: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        commits = self.view["commits"]
        done = self.view["counts"]["in"]
        return {
            "events": self.events,
            "seconds": round(self.seconds, 2),
            "events_per_s": self.events_per_s,
            "cpu_us_per_event": self.cpu_us_per_event,
            "main_us_per_event": self.main_us_per_event,
            "commits": commits["commits"],
            "events_per_commit": round(done / max(1, commits["commits"])),
            "commit_p50_ms": commits["p50_ms"],
            "aborts": commits["aborts"] + commits["unknown"],
            "counts": self.view["counts"],
        }


def through(worker: Worker, expected: int) -> Run:
    """Wait until the worker has committed `expected` source records; Failed where it stalls or goes past them.

    The clock runs from the moment a partition is seen to run, which is when its first events are fetched, to the
    last commit: what lies before is the start of a process and of a group, what lies after is idle.
    """
    first: tuple[float, Cpu] | None = None
    moved, before, told = time.monotonic(), 0, time.monotonic()
    while True:
        now, view = time.monotonic(), worker.view()
        done = (view or {}).get("counts", {}).get("in", 0)
        if done > before:
            moved, before = now, done
        if first is None and view is not None and any(t["state"] == "running" for t in view["tasks"]):
            first = (now, worker.cpu())
        if done > expected:
            raise Failed(f"{done} events were counted, {expected} were published")
        if view is not None and first is not None and done == expected:
            cpu, seconds = worker.cpu(), now - first[0]
            if seconds < POLL_S:
                raise Failed(f"{expected} events are done at a blow; give more")
            return Run(
                done,
                seconds,
                round(done / seconds),
                round((cpu.process - first[1].process) / done * 1e6, 2),
                round((cpu.main - first[1].main) / done * 1e6, 2),
                view,
            )
        if now - moved > STALLED_S:
            raise Failed(f"nothing moves: {done} of {expected} events are done. {worker.log_end()}")
        if now - told > 5:
            told = now
            say(f"  {done:,} of {expected:,} events")
        time.sleep(POLL_S)


def published(sending: Any) -> Any:
    """The result of a coroutine that fills a topic."""
    return asyncio.run(sending)


def _cpu(path: str) -> float:
    # The name in parentheses may hold anything, so fields are counted from behind it: utime and stime are 14 and 15.
    fields = Path(path).read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
