"""`semel chaos` as a user runs it: brokers and workers of its own, faults, the proof; and a pipeline that is found out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from semel.chaos.plan import KINDS
from semel.local import jars
from semel.local.install import install
from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.figures import Figures

pytestmark = [pytest.mark.broker, pytest.mark.timeout(290)]

ROOT = Path(__file__).parents[2]
KEYS = {
    "pipeline", "seed", "seconds", "workers", "brokers", "partitions", "faults", "recoveries", "events", "engine",
    "verdict", "void", "findings", "proof", "ok",
}  # fmt: skip

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The running project in a directory of its own."""
    for name in ("pipelines", "agents", "tables"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Starts `semel chaos`; whatever a failed test leaves is ended with it."""
    install(jars.NEWEST)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("SEMEL_")}
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "semel", "chaos", *arguments]
        with (project / "err.txt").open("w") as said:
            process = subprocess.Popen(
                command, cwd=project, env=bare, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def ended(process: subprocess.Popen[str], project: Path, within_s: float = 270.0) -> dict[str, Any]:
    """Its one document; nothing of it is left running."""
    out, _ = process.communicate(timeout=within_s)
    said = (project / "err.txt").read_text()
    assert "Traceback" not in said, said
    assert out, said
    found: dict[str, Any] = json.loads(out)
    assert found.keys() >= KEYS
    kafka = LocalKafka.existing(project / ".semel/chaos/kafka")
    assert kafka is not None and not kafka.pids
    return found


async def test_a_pipeline_keeps_its_laws_under_every_kind_of_fault(
    start: Start, project: Path, seed: int, figures: Figures
) -> None:
    """A plan begins with each kind once, so that half a minute has met all that can happen here."""
    process = start("pipelines.payments", "--faults", "24", "--seed", str(seed), "--json", "--report", "chaos.html")
    found = await asyncio.to_thread(ended, process, project)
    assert (process.returncode, found["verdict"], found["findings"]) == (0, "clean", []), (
        seed,
        (project / "err.txt").read_text(),
    )
    faults = found["faults"]
    assert faults["total"] == 24
    assert faults["bit"] >= 12
    # What no machine leaves out.
    assert set(KINDS) - {"leader", "disk-full", "disk-slow"} <= faults["kinds"].keys()
    assert found["recoveries"]["count"] >= 12
    assert found["events"]["redelivered"] > 100
    assert found["engine"]["duplicates"] > 0
    counts = found["proof"]["counts"]
    assert counts["records"] - counts["unread"] <= counts["counted_in"] <= counts["records"]
    assert counts["counted_in"] > 1000
    page = (project / "chaos.html").read_text()
    assert page.count("<svg") == 1
    assert "http://" not in page.replace("http://www.w3.org", "")
    figures.record("chaos, 24 faults: recovery in the median, s", found["recoveries"]["p50_s"])
    figures.record("chaos, 24 faults: recovery at most, s", found["recoveries"]["max_s"])


async def test_what_is_given_up_while_a_dependency_is_down_takes_effect_when_it_is_replayed(
    start: Start, project: Path, seed: int
) -> None:
    """Of a pipeline whose handler waits, for several keys at a time, sets timers, and whose keys stay stopped meanwhile; every
    event of one customer fails."""
    (project / "busy.py").symlink_to(ROOT / "tests/broker/pipelines/busy.py")
    process = start("busy", "--faults", "down,replay,8", "--seed", str(seed), "--json")
    found = await asyncio.to_thread(ended, process, project)
    said = (project / "err.txt").read_text()
    assert (process.returncode, found["verdict"], found["findings"]) == (0, "clean", []), (seed, said)
    assert found["faults"]["kinds"]["down"]["bit"] >= 1
    events, counts = found["events"], found["proof"]["counts"]
    # Beside them one event is given up, behind which its customer's others wait; what came back stands on the topic once more.
    assert events["given_up"] == 1
    assert counts["records"] > events["published"] + events.get("resent", 0)


async def test_a_pipeline_keeps_its_laws_while_its_input_is_compacted(start: Start, project: Path, seed: int) -> None:
    """Behind the workers and ahead of them; what went is judged by what the run kept, and the topic lacks it."""
    process = start("pipelines.payments", "--faults", "compact,4", "--seed", str(seed), "--json")
    found = await asyncio.to_thread(ended, process, project)
    said = (project / "err.txt").read_text()
    assert (process.returncode, found["verdict"], found["findings"]) == (0, "clean", []), (seed, said)
    events, counts = found["events"], found["proof"]["counts"]
    assert found["faults"]["kinds"]["compact"]["bit"] >= 2
    assert counts["records"] == events["published"] + events.get("resent", 0)
    assert events["compacted"] >= events["unread"] >= counts["unread"]
    assert events["compacted"] > 0
    assert counts["records"] - counts["unread"] <= counts["counted_in"] <= counts["records"]


KEYLESS = """
from semel import Pipeline, Topic

async def agent(stream):
    async for event in stream:
        yield event

pipeline = Pipeline("keyless", source=Topic("keyless", value=str), agent=agent, sink=Topic("copies", value=str))

def chaos_events(rng):
    while True:
        yield None, f"event-{rng.random()}"
"""


async def test_an_input_that_no_compacted_topic_can_hold_is_left_as_it_is(start: Start, project: Path) -> None:
    (project / "keyless.py").write_text(KEYLESS)
    process = start("keyless", "--faults", "compact,kill,4", "--seed", "1", "--json")
    found = await asyncio.to_thread(ended, process, project)
    said = (project / "err.txt").read_text()
    assert "records without a key, which a compacted topic does not hold" in said
    assert (process.returncode, found["verdict"], found["events"]["compacted"]) == (0, "clean", 0), said


PASSING = """
from semel import Pipeline, Topic

def agent(event):
    return event

pipeline = Pipeline("passing", source=Topic("numbers", value=dict), agent=agent, sink=Topic("copies", value=dict))

def chaos_events(rng):
    while True:
        yield f"key-{rng.randrange(50)}", {"number": rng.random()}
"""


async def test_topics_grow_while_a_pipeline_runs(start: Start, project: Path) -> None:
    (project / "passing.py").write_text(PASSING)
    process = start("passing", "--faults", "grow,kill,8", "--seed", "7", "--rate", "200", "--json")
    found = await asyncio.to_thread(ended, process, project)
    said = (project / "err.txt").read_text()
    assert (process.returncode, found["verdict"], found["findings"]) == (0, "clean", []), said
    assert "of the source" in said
    assert "of the results" in said
    assert "outputs go to the first 4, as before" in " ".join(found["proof"]["notes"])


async def test_a_result_that_is_there_twice_is_found_and_its_law_named(start: Start, project: Path) -> None:
    process = start("pipelines.payments", "--minutes", "0.4", "--faults", "kill,net", "--seed", "5", "--json")
    bootstrap = await running(project, "settlements")
    await doubled_output(bootstrap, "settlements")
    found = await asyncio.to_thread(ended, process, project)
    assert (process.returncode, found["verdict"], found["ok"]) == (1, "violated", False)
    assert any(finding.startswith("no-duplicate:") for finding in found["findings"]), found["findings"]


async def test_a_run_whose_faults_met_nothing_is_void(start: Start, project: Path) -> None:
    """Nothing is lost of a kind that never comes: an exchange of which the first 4 are waited for in vain."""
    (project / "quiet.py").write_text(
        "from semel import Pipeline, Topic\n"
        "def agent(_): ...\n"
        "pipeline = Pipeline('quiet', source=Topic('quiet', value=str), agent=agent)\n"
        "def chaos_events(rng):\n"
        "    yield 'key', 'only one'\n"
        "    yield 'key', 'and another'\n"
    )
    for _ in range(3):
        process = start("quiet", "--minutes", "0.1", "--faults", "net", "--seed", "2433", "--json")
        found = await asyncio.to_thread(ended, process, project)
        if found["verdict"] == "void":
            break
        # On a slow machine the workers' first commits come when the fault waits for them.
    assert (process.returncode, found["verdict"]) == (1, "void"), found
    assert found["void"]


async def test_an_interrupted_run_leaves_nothing_running(start: Start, project: Path) -> None:
    process = start("pipelines.payments", "--minutes", "5", "--json")
    await running(project, "settlements")
    kafka = LocalKafka.existing(project / ".semel/chaos/kafka")
    assert kafka is not None and kafka.pids
    process.send_signal(signal.SIGINT)
    out, _ = await asyncio.to_thread(process.communicate, timeout=60)
    assert (process.returncode, out) == (130, "")
    assert not kafka.pids
    assert not workers_in(project)


SHIPMENTS = """
import json
from collections.abc import Iterator
from datetime import timedelta
from operator import add
from typing import Any

from semel import Dedup, Pipeline, Table, Topic, header

stock = Table("stock", value=int, default=int)
per_depot = Table("per_depot", value=int, default=int, merge=add)


async def ship(stream):
    async for shipment in stream:
        stock[shipment["item"]] += shipment["count"]
        per_depot[shipment["depot"]] += shipment["count"]
        yield {"item": shipment["item"], "left": stock[shipment["item"]]}


pipeline = Pipeline(
    "shipments",
    source=Topic("shipments", value=dict),
    dedup=Dedup(header("ce_id", "ce_source"), window=timedelta(days=7)),
    agent=ship,
    tables=[stock, per_depot],
    sink=Topic("stock-levels", value=dict),
)
"""
# Years ago: what is recorded keeps its time, and what comes of it must not be deleted for its age.
RECORDED_MS = 1_700_000_000_000


def shipment(number: int) -> logs.Message:
    item = f"item-{number % 7}"
    value = {"item": item, "depot": f"depot-{number % 3}", "count": number}
    headers = [("ce_id", b"%d" % number), ("ce_source", b"recorded")]
    return logs.Message(item.encode(), json.dumps(value).encode(), headers, RECORDED_MS + 1000 * number)


async def test_a_run_is_fed_with_the_newest_committed_records_of_another_cluster_s_topic(
    start: Start, project: Path, kafka: LocalKafka
) -> None:
    (project / "shipments.py").write_text(SHIPMENTS)
    topic = f"shipped-{time.monotonic_ns()}"
    await logs.create(kafka.bootstrap, topic, 3, {"retention.ms": "-1"})
    await logs.send(kafka.bootstrap, topic, [shipment(number) for number in range(900)])
    async with logs.transaction(kafka.bootstrap, f"{topic}-aborted") as producer:
        for number in range(900, 950):
            m = shipment(number)
            await producer.send(topic, m.value, m.key, headers=list(m.headers))
        await producer.abort_transaction()
    before = await logs.ends(kafka.bootstrap, topic)
    process = start(
        "shipments", "--from-topic", topic, "--broker", kafka.bootstrap, "--events", "600",
        "--minutes", "0.3", "--faults", "kill,net", "--seed", "2", "--json",
    )  # fmt: skip
    found = await asyncio.to_thread(ended, process, project)
    said = (project / "err.txt").read_text()
    assert (process.returncode, found["verdict"]) == (0, "clean"), (found["findings"], found["void"], said)
    assert f"events copied from {topic} on {kafka.bootstrap}" in said
    assert 300 < found["events"]["original"] <= 600
    assert found["engine"]["duplicates"] > 0
    assert found["proof"]["counts"]["records"] == found["events"]["published"] + found["events"].get("resent", 0)
    assert await logs.ends(kafka.bootstrap, topic) == before


async def test_a_run_is_fed_with_the_lines_of_a_file(start: Start, project: Path) -> None:
    (project / "shipments.py").write_text(SHIPMENTS)
    with (project / "recorded.jsonl").open("w") as lines:
        for number in range(500):
            m = shipment(number)
            headers = {name: value.decode() for name, value in m.headers}
            assert m.key is not None
            assert m.value is not None
            line = {"key": m.key.decode(), "value": json.loads(m.value), "headers": headers, "timestamp": m.timestamp}
            lines.write(json.dumps(line) + "\n")
    process = start(
        "shipments", "--input", "recorded.jsonl", "--minutes", "0.3", "--faults", "kill,net", "--seed", "2", "--json"
    )
    found = await asyncio.to_thread(ended, process, project)
    said = (project / "err.txt").read_text()
    assert (process.returncode, found["verdict"]) == (0, "clean"), (found["findings"], found["void"], said)
    assert found["events"]["original"] == 500
    assert found["engine"]["duplicates"] > 0


SHOP = """
import faust
from semel import App

# A broker that the run must never come near.
app = App("shop", broker="kafka://127.0.0.1:1")


class Order(faust.Record):
    id: str
    customer: str
    total: int


orders = app.topic("orders", key_type=str, value_type=Order)
receipts = app.topic("receipts", key_type=str, value_type=int)
totals = app.Table("totals", default=int)


@app.agent(orders)
async def add_up(stream):
    async for key, order in stream.items():
        totals[order.customer] += order.total
        await receipts.send(key=key, value=totals[order.customer])
"""


async def test_an_app_keeps_its_laws_on_brokers_of_the_run(start: Start, project: Path) -> None:
    (project / "shop.py").write_text(SHOP)
    process = start("shop:app", "--faults", "kill,net,term,clock,8", "--seed", "4", "--rate", "300", "--json")
    found = await asyncio.to_thread(ended, process, project)
    said = (project / "err.txt").read_text()
    assert (process.returncode, found["verdict"]) == (0, "clean"), (found["findings"], found["void"], said)
    counts = found["proof"]["counts"]
    assert counts["records"] == counts["counted_in"] > 500
    assert counts["outputs"] > 500


async def running(project: Path, sink: str) -> str:
    """Waits until a run has written results; its brokers."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with suppress(Exception):
            kafka = LocalKafka.existing(project / ".semel/chaos/kafka")
            if kafka is not None and sum((await logs.ends(kafka.bootstrap, sink)).values()) > 200:
                return kafka.bootstrap
        await asyncio.sleep(0.2)
    pytest.fail((project / "err.txt").read_text())


async def doubled_output(bootstrap: str, sink: str) -> None:
    """What a worker without fences would do: a result is written once more, as it was."""
    line = (await logs.read(bootstrap, sink))[50]
    await logs.send(bootstrap, sink, [logs.Message(line.key, line.value, line.headers, line.timestamp, line.partition)])


def workers_in(project: Path) -> list[int]:
    """Processes of this machine that have the project for their directory."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if (entry / "cwd").resolve() == project.resolve():
                    found.append(int(entry.name))
    return found
