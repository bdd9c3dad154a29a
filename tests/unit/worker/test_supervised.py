"""A pipeline as `semel worker` runs it: an engine, and nothing of Faust's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from semel import Pipeline, Topic
from semel.config import Settings
from semel.errors import InstanceTaken
from semel.local.process import environment_without_settings
from semel.memory.cluster import MemoryCluster
from semel.port import TP
from semel.state.directory import StateDirectory
from semel.testing.clock import VirtualClock
from semel.worker import main
from semel.worker.supervised import PlainWorker
from tests.unit.memory_node import connect_to

PROJECT = """
import atexit, sys
from semel import Pipeline, Topic

def agent(event):
    return event

pipeline = Pipeline("shop", source=Topic("orders"), agent=agent, sink=Topic("results"))
atexit.register(lambda: print([m for m in sys.modules if m.startswith(("faust", "mode", "semel.faust_"))]))
"""


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryCluster]:
    clock = VirtualClock()
    cluster = MemoryCluster(clock)
    connect_to(cluster, clock, monkeypatch)
    cluster.create_topic("orders", 1)
    yield cluster


def of(agent: Any, tmp_path: Path, **settings: Any) -> PlainWorker:
    pipeline = Pipeline("shop", source=Topic("orders"), agent=agent, sink=Topic("results"))
    return PlainWorker(pipeline.plan(), Settings(state_dir=tmp_path, web_port=0, **settings), instance="w1")


def results(cluster: MemoryCluster) -> list[Any]:
    if "results" not in cluster.topics():
        return []
    return [json.loads(r.value or b"null") for records in cluster.committed("results") for r in records]


def send(cluster: MemoryCluster, *values: Any) -> None:
    cluster.write(TP("orders", 0), [(None, json.dumps(value).encode()) for value in values])


async def test_it_runs_until_it_is_stopped_and_commits_what_is_in_hand(cluster: MemoryCluster, tmp_path: Path) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(order: Any) -> Any:
        begun.set()
        await goes_on.wait()
        return order

    running, stop = of(slow, tmp_path), asyncio.Event()
    serving = asyncio.create_task(main._serve(running, stop, drain_s=30))
    send(cluster, {"n": 1})
    await begun.wait()
    assert running.host is not None and running.host.engine.scheduler.only_agents
    stop.set()
    await asyncio.sleep(1)
    assert not serving.done()
    goes_on.set()
    assert await serving is None
    assert results(cluster) == [{"n": 1}]


async def test_what_does_not_end_in_time_is_ended_without_its_event(cluster: MemoryCluster, tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless(order: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    running, stop = of(endless, tmp_path, drain_timeout_ms=60_000), asyncio.Event()
    serving = asyncio.create_task(main._serve(running, stop, drain_s=3))
    send(cluster, {"n": 1})
    await begun.wait()
    stop.set()
    async with asyncio.timeout(3 + 2 * main.CLOSE_S):
        assert await serving is None
    assert results(cluster) == []
    StateDirectory(tmp_path / "shop" / "w1", "shop", "w1").release()


async def test_what_the_engine_fails_with_ends_it_at_once_and_is_said(
    cluster: MemoryCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = of(lambda order: order, tmp_path)
    serving = asyncio.create_task(main._serve(running, asyncio.Event(), drain_s=30))
    await asyncio.sleep(1.03)
    assert running.host is not None
    failure = ValueError("a defect")
    running.host.engine.fail(failure)
    assert await serving is failure
    assert "the worker stops on an unexpected error: ValueError: a defect" in caplog.text


async def test_a_failure_is_known_when_it_happens_and_not_a_while_later(cluster: MemoryCluster, tmp_path: Path) -> None:
    running, loop = of(lambda order: order, tmp_path), asyncio.get_running_loop()
    running.start()
    failing = asyncio.create_task(running.wait_failed())
    await asyncio.sleep(1.03)
    assert running.host is not None and not failing.done()
    before = loop.time()
    running.host.engine.fail(ValueError("a defect"))
    await failing
    assert loop.time() - before < 0.01


async def test_what_keeps_it_from_starting_is_its_failure(cluster: MemoryCluster, tmp_path: Path) -> None:
    taken = StateDirectory(tmp_path / "shop" / "w1", "shop", "w1")
    running = of(lambda order: order, tmp_path)
    failure = await main._serve(running, asyncio.Event(), drain_s=30)
    assert isinstance(failure, InstanceTaken)
    taken.release()


async def test_one_that_is_told_to_end_before_it_began_ends_in_order(cluster: MemoryCluster, tmp_path: Path) -> None:
    running, stop = of(lambda order: order, tmp_path), asyncio.Event()
    stop.set()
    running.told()
    assert await main._serve(running, stop, drain_s=30) is None


def test_the_process_of_a_pipeline_never_imports_faust(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROJECT)
    # A variable of Faust's is meant for Faust's apps.
    environment = environment_without_settings() | {"SEMEL_BROKER": "127.0.0.1:1", "PRODUCER_ACKS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "semel", "worker", "shop", "--web-port", "0"], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None and process.stdout is not None
        began = next((line for line in process.stderr if "web views on" in line), None)
        os.kill(process.pid, signal.SIGTERM)
        said, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert began is not None, log
    assert process.returncode == 0, log
    assert said == "[]\n"


def test_a_faust_section_that_a_pipeline_does_not_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline("shop", source=Topic("orders"), agent=lambda order: order)
    given = {"broker_client_id": "till", "stream_buffer_maxsize": 1}
    main._supervised(pipeline, Settings(faust=given), instance=None, adopt=False)
    assert "[faust] sets stream_buffer_maxsize, which a semel.App reads and nobody else" in caplog.text


async def test_what_of_a_faust_section_is_about_the_connection_reaches_the_engine(
    cluster: MemoryCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = connect_to(cluster, VirtualClock(), monkeypatch)
    given = {"broker_client_id": "till", "producer_compression_type": "gzip", "web_enabled": False}
    running = of(lambda order: order, tmp_path, faust=given)
    running.start()
    async with asyncio.timeout(5):
        while running.host is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert asked == [("till", "gzip")]
    assert running.host._web is None
    await running.stop()
    await running.close()
