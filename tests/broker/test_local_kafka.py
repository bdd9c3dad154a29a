from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from semel.local import ports
from semel.local.errors import LocalKafkaError, NotReady, PortTaken
from semel.local.kafka import LocalKafka

pytestmark = pytest.mark.broker

MakeKafka = Callable[..., LocalKafka]


async def write(bootstrap: str, topic: str, values: list[bytes], replicas: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=replicas)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def read(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_data_is_kept_through_stop_kill_and_restart(own_kafka: MakeKafka) -> None:
    kafka = own_kafka()
    assert not kafka.running
    kafka.start()
    bootstrap = kafka.bootstrap
    first = kafka.pids
    await write(bootstrap, "kept", [b"a", b"b"])

    kafka.stop()
    assert (kafka.running, kafka.pids) == (False, {})
    kafka.start()
    assert kafka.bootstrap == bootstrap
    assert kafka.pids != first
    assert await read(bootstrap, "kept", 2) == [b"a", b"b"]

    kafka.kill9(1)
    assert kafka.pids == {}
    kafka.restart(1)
    assert await read(bootstrap, "kept", 2) == [b"a", b"b"]


def test_another_object_finds_the_running_cluster_and_does_not_start_it_twice(own_kafka: MakeKafka) -> None:
    kafka = own_kafka()
    kafka.start()
    other = LocalKafka(kafka.data_dir, version=kafka.version)
    assert other.pids == kafka.pids
    began = time.monotonic()
    other.start()
    assert time.monotonic() - began < 0.5
    assert other.pids == kafka.pids
    other.stop()
    assert not kafka.running


async def test_three_brokers_serve_while_one_is_dead_and_take_it_back(own_kafka: MakeKafka) -> None:
    kafka = own_kafka(brokers=3)
    kafka.start()
    assert set(kafka.pids) == {1, 2, 3}
    await write(kafka.bootstrap, "replicated", [b"a"], replicas=3)
    kafka.kill9(2)
    assert set(kafka.pids) == {1, 3}
    assert await read(kafka.bootstrap, "replicated", 1) == [b"a"]
    kafka.restart(2)
    assert kafka.running


async def test_properties_given_by_the_caller_reach_the_broker(own_kafka: MakeKafka) -> None:
    kafka = own_kafka(properties={"auto.create.topics.enable": "true"})
    kafka.start()
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        sent = await producer.send_and_wait("never-declared", b"a")
    assert sent.offset == 0


def test_a_port_of_somebody_else_is_refused_and_nothing_is_started(own_kafka: MakeKafka) -> None:
    kafka = own_kafka("first")
    (port,) = ports.choose(1)
    with socket.create_server(("127.0.0.1", port)):
        clashing = LocalKafka(kafka.data_dir, version=kafka.version, port=port)
        with pytest.raises(PortTaken, match=f"Port {port} "):
            clashing.start()
        assert clashing.pids == {}


def test_a_directory_of_another_version_is_refused(own_kafka: MakeKafka) -> None:
    kafka = own_kafka()
    kafka.start()
    kafka.stop()
    other = {"4.1.1": "3.9.1", "3.9.1": "4.1.1"}[kafka.version]
    with pytest.raises(LocalKafkaError, match="Use another data directory"):
        LocalKafka(kafka.data_dir, version=other).start()


def test_a_broker_that_cannot_start_is_reported_with_its_log(own_kafka: MakeKafka) -> None:
    kafka = own_kafka(properties={"log.segment.bytes": "many"})
    with pytest.raises(NotReady, match=r"log\.segment\.bytes"):
        kafka.start()
    assert kafka.pids == {}


def test_a_stopped_process_is_stopped_for_good_by_sigkill(own_kafka: MakeKafka) -> None:
    kafka = own_kafka()
    kafka.start()
    os.kill(kafka.pids[1], signal.SIGSTOP)
    kafka.stop(grace_s=0.5)
    assert kafka.pids == {}


async def test_the_shared_broker_has_had_its_first_group_and_transaction(any_kafka: LocalKafka) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=any_kafka.bootstrap)
    await admin.start()
    topics = await admin.list_topics()
    await admin.close()
    assert {"__consumer_offsets", "__transaction_state"} <= set(topics)


def test_the_shared_cluster_has_three_brokers(kafka_cluster: LocalKafka) -> None:
    assert len(kafka_cluster.bootstrap.split(",")) == len(kafka_cluster.pids) == 3


def test_a_topic_prefix_is_named_after_its_test(topic_prefix: str) -> None:
    assert topic_prefix.startswith("test-a-topic-prefix-is-named-after-its-t-")
    assert len(topic_prefix) <= 50


def semel_kafka(folder: Path, *arguments: str) -> tuple[int, Any]:
    """Exit code and JSON of `semel kafka ARGUMENTS`, run in a folder."""
    command = [sys.executable, "-c", "from semel.cli import main; main()", "kafka", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def test_the_command_starts_a_kafka_that_outlives_it_and_stops_it(tmp_path: Path) -> None:
    (port,) = ports.choose(1)
    assert semel_kafka(tmp_path, "status")[0] == 3
    try:
        code, started = semel_kafka(tmp_path, "start", "--port", str(port))
        assert (code, started["bootstrap"]) == (0, f"127.0.0.1:{port}")

        code, again = semel_kafka(tmp_path, "start")
        assert (code, again) == (0, started)
        assert semel_kafka(tmp_path, "status") == (0, started)

        code, message = semel_kafka(tmp_path, "start", "--data", "elsewhere", "--port", str(port))
        assert code == 1
        assert f"Port {port} " in message
        code, message = semel_kafka(tmp_path, "start", "--version", "3.9")
        assert code == 1
        assert "holds Kafka 4.1.1" in message
    finally:
        assert semel_kafka(tmp_path, "stop") == (0, {"stopped": 1})
    assert semel_kafka(tmp_path, "status")[0] == 3
