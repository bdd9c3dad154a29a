"""`semel up` as a user runs it: a broker, two workers, a kill and an audit, all of it real."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from semel.local import jars
from semel.local.install import install

pytestmark = [pytest.mark.broker, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[2]
KEYS = [
    "events", "redelivered", "accepted", "duplicates", "conflicts", "dead_lettered", "lost", "doubled", "wrong_rows",
    "kills", "seconds", "events_per_s", "seed", "ok",
]  # fmt: skip


@pytest.fixture
def project(tmp_path):
    """The running project in a directory of its own, so that nobody else's run is in the way."""
    for name in ("pipelines", "agents", "tables", "feeds", "demos"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def start(project):
    """Starts `semel up`; whatever a failed test leaves is ended with it."""
    install(jars.NEWEST)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("SEMEL_")}
    started = []

    def begin(*arguments, **options):
        command = [sys.executable, "-m", "semel", "up", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        started.append(subprocess.Popen(command, cwd=project, env=bare, stdin=subprocess.DEVNULL, **options))
        return started[-1]

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def children(process):
    """Brokers, workers and what starts them, of this run: the processes below it."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, row.split()) for row in listed.splitlines())
    below = {process.pid}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted(below - {process.pid})


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    with suppress(FileNotFoundError, ProcessLookupError):
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def wait_for(condition, seconds=90):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_run_with_a_kill_loses_and_doubles_nothing_and_leaves_nothing_running(start, project):
    process = start("--events", "5000", "--seed", "3", "--json")
    seen = set()
    while process.poll() is None:
        seen.update(children(process))
        time.sleep(0.1)
    out, err = process.communicate()

    assert process.returncode == 0, err
    report = json.loads(out)
    assert list(report) == KEYS
    assert (report["events"], report["accepted"], report["seed"], report["ok"]) == (5000, 5000, 3, True)
    assert (report["lost"], report["doubled"], report["wrong_rows"], report["kills"]) == (0, 0, 0, 1)
    assert report["redelivered"] == report["duplicates"] + report["conflicts"] > 500
    assert report["dead_lettered"] == report["conflicts"] > 0
    assert report["events_per_s"] == pytest.approx(5000 / report["seconds"], rel=0.01)
    assert "kill: SIGKILL to up-" in err
    assert "recovery: up-" in err
    assert len(seen) >= 5, "a broker, what starts workers, two of them, and the one started again"
    assert not [pid for pid in seen if alive(pid)]
    for name in ("up-1", "up-2"):
        assert "runs from" in (project / ".semel/up/logs" / f"{name}.log").read_text()


def test_a_pipeline_without_dedup_is_found_out(start, project):
    (project / "pipelines").unlink()
    shutil.copytree(ROOT / "pipelines", project / "pipelines")
    flights = project / "pipelines" / "flights.py"
    text = flights.read_text()
    declared = '    dedup=Dedup("id", window=timedelta(days=7)),\n'
    assert declared in text
    flights.write_text(text.replace(declared, ""))

    process = start("--events", "2000", "--json")
    out, err = process.communicate()

    assert process.returncode == 1, err
    report = json.loads(out)
    assert report["ok"] is False
    assert report["accepted"] == report["events"] + report["redelivered"]
    assert report["doubled"] == report["redelivered"] > 0
    assert report["wrong_rows"] > 0
    assert report["findings"]


def test_even_one_event_is_accepted_once(start):
    process = start("--events", "1", "--json")
    out, err = process.communicate()

    assert process.returncode == 0, err
    report = json.loads(out)
    assert (report["events"], report["accepted"], report["kills"], report["ok"]) == (1, 1, 1, True)


STAYS = (
    "stopped up-1, up-2, Kafka. .semel/up keeps topics (kafka), state and logs until the next `semel up`, which begins "
    "anew; to look at the topics: semel kafka start --data .semel/up/kafka"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_audit_is_130_and_ends_everything(number, start, project):
    process = start("--json")
    wait_for(lambda: len(children(process)) == 4)
    seen = children(process)

    process.send_signal(number)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, "")
    assert not [pid for pid in seen if alive(pid)]
    interrupted, last = err.splitlines()[-2:]
    assert re.fullmatch(r"interrupted before (the audit|anything was processed); stopping", interrupted)
    assert last == STAYS


def test_an_interrupt_during_the_audit_is_130_and_its_last_word_is_what_was_stopped_and_what_stays(start, project):
    process = start("--events", "20000", "--seed", "1", "--json")
    said = []
    for line in process.stderr:
        said.append(line)
        if "audit: reading all rows" in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, ""), "".join(said)
    assert err.splitlines()[-2:] == ["interrupted during the audit, so nothing is said of the result; stopping", STAYS]
    for kept in ("kafka/cluster.json", "state/flights/up-1", "logs/up-1.log"):
        assert (project / ".semel/up" / kept).exists()


def test_a_killed_run_takes_everything_with_it(start):
    process = start("--json", stderr=subprocess.DEVNULL)
    wait_for(lambda: len(children(process)) == 4)
    seen = children(process)

    process.kill()
    process.wait()

    wait_for(lambda: not [pid for pid in seen if alive(pid)], seconds=10)


def test_nobody_reading_what_it_says_ends_everything_too(start):
    process = start("--events", "100000", "--json")
    wait_for(lambda: len(children(process)) == 4)
    seen = children(process)

    process.stderr.close()

    wait_for(lambda: process.poll() is not None)
    assert process.returncode == 1
    assert not [pid for pid in seen if alive(pid)]


def test_a_second_run_in_the_same_directory_is_refused(start):
    first = start("--json", stderr=subprocess.DEVNULL)
    wait_for(lambda: children(first))

    out, err = start("--events", "10", "--json").communicate()

    report = json.loads(out)
    assert (report["ok"], report["lost"]) == (False, None)
    assert "another `semel up` runs in this directory" in report["error"]
    assert "another `semel up`" in err
    assert first.poll() is None


def test_a_worker_that_ends_by_itself_is_said_with_its_last_words(start, project):
    process = start("--events", "400000", "--json")
    log = project / ".semel/up/logs/up-2.log"
    wait_for(lambda: log.exists() and "runs from" in log.read_text())

    os.kill(children(process)[-1], signal.SIGTERM)
    out, err = process.communicate(timeout=120)

    assert process.returncode == 1
    report = json.loads(out)
    assert report["ok"] is False
    assert "ended by itself" in report["error"]
    assert "stopping: finishing what is in hand" in err
