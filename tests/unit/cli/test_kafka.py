"""`semel kafka status` over processes that stand for brokers: it asks for nothing but whether they live."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.local.process import ProcessId, end, launch


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Callable[[int], list[ProcessId]]]:
    """A data directory whose cluster has so many brokers, all alive for a minute at most."""
    started: list[ProcessId] = []

    def begin(count: int) -> list[ProcessId]:
        started.extend(launch(["sleep", "60"], tmp_path / "log", detached=False) for _ in range(count))
        data = tmp_path / ".semel" / "kafka"
        data.mkdir(parents=True)
        cluster: dict[str, Any] = {
            "version": "4.1.1",
            "cluster_id": "none",
            "nodes": [{"id": n, "port": 20_000 + n, "controller_port": 20_100 + n} for n in range(1, count + 1)],
            "processes": {n: {"pid": p.pid, "started": p.started} for n, p in enumerate(started, 1)},
        }
        (data / "cluster.json").write_text(json.dumps(cluster))
        return started

    yield begin
    end(started, 0.0)


async def test_status_names_which_of_three_brokers_run_and_which_does_not(semel: Any, brokers: Any) -> None:
    first, second, third = brokers(3)
    end([second], 0.0)

    ran = await semel("kafka", "status")

    assert ran.code == 3
    headline, *lines = ran.out.splitlines()
    assert headline == "partly running, 2 of 3 brokers, without 2: Kafka 4.1.1, data in .semel/kafka"
    assert lines == [
        f"  broker 1 on 127.0.0.1:20001, pid {first.pid}",
        "  broker 2 on 127.0.0.1:20002, not running",
        f"  broker 3 on 127.0.0.1:20003, pid {third.pid}",
    ]
    assert "semel kafka start" in ran.err
    found = (await semel("kafka", "status", "--json")).json
    assert (found["running"], found["state"]) == (False, "partly running")
    assert [broker["pid"] for broker in found["brokers"]] == [first.pid, None, third.pid]


async def test_status_is_0_where_all_run_and_3_where_none_does(semel: Any, brokers: Any) -> None:
    both = brokers(2)

    ran = await semel("kafka", "status")
    assert (ran.code, ran.out.split(":")[0]) == (0, "running")
    end(both, 0.0)
    ran = await semel("kafka", "status")
    assert (ran.code, ran.out.split(":")[0]) == (3, "stopped")
    assert "start" not in ran.err


async def test_status_of_a_directory_without_a_cluster_is_3(semel: Any) -> None:
    ran = await semel("kafka", "status", "--json")

    assert (ran.code, ran.json["state"], ran.json["brokers"]) == (3, "stopped", [])
