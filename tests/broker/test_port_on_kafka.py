"""What only real brokers show of the port: lost connections, moved leaders, waiting calls, their words, quotas, TLS.

What an implementation in memory must do as well stands in `tests/contract`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from semel.kafka import KafkaBroker, Security
from semel.kafka.admin import set_quota, set_topic_configs
from semel.local import ports
from semel.local.kafka import LocalKafka
from semel.port import EARLIEST, LATEST, TP, FetchRequest, Membership, Producer, RpcError, RpcLost, TopicSpec
from semel.runtime.clock import SystemClock
from semel.testing.clock import VirtualClock
from semel.worker.heartbeat_thread import HeartbeatThread
from tests.contract.rig import Rig, code_of

pytestmark = pytest.mark.broker

MakeKafka = Callable[..., LocalKafka]
T = TypeVar("T")


def rig_for(bootstrap: str, prefix: str, rpc_timeout_ms: int = 5_000) -> Rig:
    # On a loop in real time this clock tells the real one.
    return Rig(lambda: KafkaBroker(bootstrap, rpc_timeout_ms=rpc_timeout_ms), VirtualClock(time.time()), prefix)


@pytest.fixture
async def rig(any_kafka: LocalKafka, topic_prefix: str) -> AsyncIterator[Rig]:
    rig = rig_for(any_kafka.bootstrap, topic_prefix)
    yield rig
    await rig.close()


@pytest.fixture
async def broker(rig: Rig) -> KafkaBroker:
    connected = await rig.connect()
    assert isinstance(connected, KafkaBroker)
    return connected


async def eventually(call: Callable[[], Awaitable[T]], within_s: float = 40.0) -> T:
    """Ask again through every loss and refusal: what a worker does while its broker is away."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return await call()
        except (RpcError, RpcLost):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


async def transaction(rig: Rig, broker: KafkaBroker, name: str, tps: list[TP], value: bytes) -> None:
    """A writer of this id writes one value to each partition; an interrupted attempt is dropped and repeated."""

    async def attempt() -> None:
        producer = await broker.init_producer_id(name, 10_000)
        batches: dict[TP, bytes] = {}
        for tp in tps:
            building = broker.batch_builder(1000)
            building.append(None, b"k", value, [])
            batches[tp] = building.build(producer, 0)
        await broker.add_partitions(producer, tps)
        await broker.produce(producer, batches)
        await broker.end_txn(producer, commit=True)

    await eventually(attempt)


def unrepeated(values: list[bytes | None]) -> list[bytes | None]:
    """Without the repeats of a transaction that was committed although its answer was lost."""
    return list(dict.fromkeys(values))


# -- waiting and not being waited for


async def test_a_long_poll_delays_no_other_call(rig: Rig, broker: KafkaBroker) -> None:
    tp = await rig.partition(broker)
    node = (await broker.leaders([tp]))[tp]
    membership = await rig.member(broker, rig.name("group"))
    writer = await rig.writer(broker)

    async def poll(purpose: str, wait_ms: int) -> None:
        await broker.fetch(
            FetchRequest(node, {tp: 0}, max_wait_ms=wait_ms, max_bytes=1000, partition_max_bytes=1000, purpose=purpose)
        )

    await poll("restore", 1)
    waiting = asyncio.create_task(poll("source", 10_000))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await broker.heartbeat(membership)
    await poll("restore", 1)
    await writer.begin([tp], membership.group)
    await writer.end(commit=False)
    await broker.list_offsets([tp], LATEST)
    await broker.topics([tp.topic])
    assert time.monotonic() - began < 2.0
    # The marker of the transaction above may have woken it; what matters is that nothing waited for it.
    waiting.cancel()


async def test_a_cancelled_long_poll_does_not_hold_up_the_next_one(rig: Rig, broker: KafkaBroker) -> None:
    tp = await rig.partition(broker)
    waiting = asyncio.create_task(rig.fetch(broker, tp, 0, max_wait_ms=20_000))
    await asyncio.sleep(0.2)
    waiting.cancel()
    began = time.monotonic()
    fetched = await rig.fetch(broker, tp, 0, max_wait_ms=1)
    assert (fetched.error, fetched.next_offset) == (0, 0)
    assert time.monotonic() - began < 2.0


async def test_answers_stay_with_their_questions_while_calls_are_cancelled(rig: Rig, broker: KafkaBroker) -> None:
    topics = [await rig.topic(broker, partitions) for partitions in (1, 2, 3)]
    rng = random.Random(7)

    async def ask(number: int) -> None:
        name = topics[number % 3]
        if number % 2:
            found = await broker.topics([name])
            assert {topic: info.partitions for topic, info in found.items()} == {name: number % 3 + 1}
        else:
            tps = [TP(name, partition) for partition in range(number % 3 + 1)]
            assert await broker.list_offsets(tps, EARLIEST) == dict.fromkeys(tps, 0)

    cancelled = answered = lost = 0
    for round_ in range(60):
        calls = [asyncio.create_task(ask(round_ * 7 + n)) for n in range(6)]
        await asyncio.sleep(rng.random() * 0.004)
        for call in rng.sample(calls, 3):
            call.cancel()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            cancelled += isinstance(outcome, asyncio.CancelledError)
            answered += outcome is None
            lost += isinstance(outcome, RpcLost)
            assert outcome is None or isinstance(outcome, asyncio.CancelledError | RpcLost)
    assert cancelled > 20
    assert answered > 100
    # A cancelled call closes its connection, and must not take others along.
    assert lost == 0


async def test_joining_waits_for_the_others_without_delaying_heartbeats(rig: Rig, broker: KafkaBroker) -> None:
    group = rig.name("group")
    first = await rig.member(broker, group, instance="a")
    second = await rig.connect()
    joining = asyncio.create_task(rig.join(second, group, instance="b"))
    await rig.until(lambda: _answers(27, lambda: broker.heartbeat(first)))
    assert not joining.done()
    began = time.monotonic()
    for _ in range(5):
        assert await code_of(broker.heartbeat(first)) == 27
    assert time.monotonic() - began < 1.0

    again = await rig.join(broker, group, member_id=first.member_id, instance="a")
    other = await joining
    assert (again.generation, again.is_leader, other.is_leader) == (other.generation, True, False)
    assert {member.instance_id for member in again.members} == {"a", "b"}
    mine = Membership(group, again.generation, again.member_id, "a")
    theirs = Membership(group, other.generation, other.member_id, "b")
    waiting = asyncio.create_task(second.sync_group(theirs, {}))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    assert await broker.sync_group(mine, {mine.member_id: b"1", theirs.member_id: b"2"}) == b"1"
    assert await waiting == b"2"
    await broker.heartbeat(mine)
    await second.heartbeat(theirs)


async def _answers(code: int, call: Callable[[], Awaitable[object]]) -> bool:
    return await code_of(call()) == code


# -- what is refused, and what is set by tools


async def _stable(broker: KafkaBroker, tp: TP) -> bool:
    return await broker.list_offsets([tp], LATEST) == await broker.list_offsets([tp], LATEST, committed=True)


async def test_a_refused_commit_of_offsets_names_the_partition(rig: Rig, broker: KafkaBroker) -> None:
    tp = await rig.partition(broker)
    member = await rig.member(broker, rig.name("group"))
    writer = await rig.writer(broker)
    await writer.begin([tp], member.group)
    with pytest.raises(RpcError) as refused:
        await broker.commit_offsets(writer.producer, member._replace(generation=member.generation + 1), {tp: 5})
    assert (refused.value.api, refused.value.code) == ("TxnOffsetCommit", 22)
    assert f"{tp.topic}-0" in refused.value.detail
    await writer.end(commit=False)


async def test_a_refused_batch_names_the_partition_and_the_brokers_words(rig: Rig, broker: KafkaBroker) -> None:
    good = await rig.partition(broker)
    compacted = await rig.partition(broker, cleanup_policy="compact")
    writer = await rig.writer(broker)
    await writer.begin([good, compacted])
    batches = {good: writer.batch(b"v", base=0), compacted: writer.batch(b"v", key=None, base=0)}
    with pytest.raises(RpcError) as refused:
        await broker.produce(writer.producer, batches)
    assert (refused.value.api, refused.value.code) == ("Produce", 87)
    assert refused.value.detail.startswith(f"INVALID_RECORD at {compacted.topic}-0: ")
    assert "key" in refused.value.detail


async def test_a_topic_keeps_nothing_of_what_was_set_before_by_tools(
    rig: Rig, broker: KafkaBroker, any_kafka: LocalKafka
) -> None:
    topic = await rig.topic(broker, retention_ms="60000")
    by_default = (await broker.topic_configs([topic]))[topic] | {"retention.ms": "604800000"}
    for configs in ({"cleanup.policy": "compact"}, {"segment.ms": "1", "retention.ms": "-1"}, {}):
        await set_topic_configs(any_kafka.bootstrap, topic, configs)
        await rig.until(lambda wanted=configs: _configured(broker, topic, by_default | wanted))
    with pytest.raises(RpcError) as refused:
        await set_topic_configs(any_kafka.bootstrap, topic, {"cleanup.policy": "compress"})
    assert (refused.value.api, refused.value.code) == ("AlterConfigs", 40)
    with pytest.raises(RpcLost):
        await set_topic_configs(f"127.0.0.1:{ports.choose(1)[0]}", topic, {})


async def _configured(broker: KafkaBroker, topic: str, wanted: dict[str, str]) -> bool:
    return (await broker.topic_configs([topic]))[topic] == wanted


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_are_taken_and_read_back(rig: Rig, any_kafka: LocalKafka, compression: str) -> None:
    broker = KafkaBroker(any_kafka.bootstrap, rpc_timeout_ms=5_000, compression=compression)
    await broker.start()
    tp = await rig.partition(broker)
    await rig.produced(broker, tp, *[b"%d" % n * 20 for n in range(50)])
    assert await rig.values(broker, tp) == [b"%d" % n * 20 for n in range(50)]
    await broker.close()


# -- brokers that go away


async def test_a_broker_killed_and_started_again_is_found_by_the_same_client(
    own_kafka: MakeKafka, topic_prefix: str
) -> None:
    kafka = own_kafka()
    kafka.start()
    rig = rig_for(kafka.bootstrap, topic_prefix, rpc_timeout_ms=2_000)
    client = KafkaBroker(kafka.bootstrap)
    await client.start()
    tp = await eventually(lambda: rig.partition(client))
    name = rig.name("writer")
    await transaction(rig, client, name, [tp], b"before")
    member = await eventually(lambda: rig.member(client, rig.name("group"), session_timeout_ms=60_000))
    await rig.until(lambda: _stable(client, tp))
    polling = asyncio.create_task(rig.fetch(client, tp, 2, max_wait_ms=30_000))
    await asyncio.sleep(0.3)

    await asyncio.to_thread(kafka.kill9)
    began = time.monotonic()
    with pytest.raises(RpcLost) as lost:
        await polling
    assert lost.value.sent is True
    for call in (
        lambda: client.init_producer_id(name, 10_000),
        lambda: client.heartbeat(member),
        lambda: client.list_offsets([tp], LATEST),
        client.topics,
    ):
        with pytest.raises(RpcLost) as lost:
            await call()
        assert lost.value.sent is False
    assert time.monotonic() - began < 1.0

    await asyncio.to_thread(kafka.restart)
    back = time.monotonic()
    await eventually(lambda: client.heartbeat(member))
    await transaction(rig, client, name, [tp], b"after")
    await rig.until(lambda: _stable(client, tp))
    assert unrepeated(await eventually(lambda: rig.values(client, tp))) == [b"before", b"after"]
    assert time.monotonic() - back < 15
    await client.close()


async def test_a_frozen_broker_is_a_loss_at_the_bound_and_serves_again_when_it_thaws(
    own_kafka: MakeKafka, topic_prefix: str
) -> None:
    kafka = own_kafka()
    kafka.start()
    rig = rig_for(kafka.bootstrap, topic_prefix)
    client = KafkaBroker(kafka.bootstrap, rpc_timeout_ms=1_000)
    await client.start()
    name = await eventually(lambda: rig.topic(client, 2))
    tps = [TP(name, 0), TP(name, 1)]
    (pid,) = kafka.pids.values()
    os.kill(pid, signal.SIGSTOP)
    try:
        for sent in (True, False):  # over the open connection, then over one that is never accepted
            began = time.monotonic()
            with pytest.raises(RpcLost) as lost:
                await client.list_offsets(tps, EARLIEST)
            assert (lost.value.sent, lost.value.api) == (sent, "ListOffsets")
            assert 0.9 < time.monotonic() - began < 1.6
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await eventually(lambda: client.list_offsets(tps, EARLIEST)) == dict.fromkeys(tps, 0)
    assert set(await client.topics([name])) == {name}
    await client.close()


async def test_moved_leaders_and_coordinators_are_followed(kafka_cluster: LocalKafka, topic_prefix: str) -> None:
    rig = rig_for(kafka_cluster.bootstrap, topic_prefix)
    client = KafkaBroker(kafka_cluster.bootstrap)
    await client.start()
    assert await client.broker_count() == 3
    name = rig.name("topic")
    await client.create_topics([TopicSpec(name, 6, 3, {})])
    tps = [TP(name, partition) for partition in range(6)]
    writer = rig.name("writer")
    await transaction(rig, client, writer, tps, b"before")
    before = await client.leaders(tps)
    assert set(before.values()) == {1, 2, 3}
    victim = before[tps[0]]

    await asyncio.to_thread(kafka_cluster.kill9, victim)
    try:
        await transaction(rig, client, writer, tps, b"after")
        after = await client.leaders(tps)
        assert victim not in after.values()
        assert set(after) == set(tps)
        groups = [rig.name("group") for _ in range(5)]
        for group in groups:
            member = await eventually(lambda g=group: rig.member(client, g))
            await eventually(lambda m=member: client.heartbeat(m))
            await eventually(lambda m=member: client.leave_group(m))
    finally:
        await asyncio.to_thread(kafka_cluster.restart, victim)
    for tp in tps:
        await rig.until(lambda tp=tp: _stable(client, tp))
        assert unrepeated(await eventually(lambda tp=tp: rig.values(client, tp))) == [b"before", b"after"]
    await client.close()


async def test_holders_are_named_wherever_leader_and_coordinator_are(
    kafka_cluster: LocalKafka, topic_prefix: str
) -> None:
    rig = rig_for(kafka_cluster.bootstrap, topic_prefix)
    client = KafkaBroker(kafka_cluster.bootstrap)
    await client.start()
    name = rig.name("topic")
    await client.create_topics([TopicSpec(name, 6, 3, {})])
    tps = [TP(name, partition) for partition in range(6)]
    await rig.patiently(lambda: client.list_offsets(tps, LATEST), frozenset({3, 5, 6}))
    writers = [await rig.writer(client) for _ in tps]
    for tp, writer in zip(tps, writers, strict=True):
        await writer.begin([tp])
        await writer.send(tp, b"open")
    held = await client.open_transactions(tps)
    assert {tp: [found.transactional_id for found in found_at] for tp, found_at in held.items()} == {
        tp: [writer.producer.transactional_id] for tp, writer in zip(tps, writers, strict=True)
    }
    for writer in writers:
        await writer.end(commit=False)
    await client.close()


# -- quotas


async def test_a_producers_quota_is_waited_for_and_holds_up_nothing_else(kafka: LocalKafka, topic_prefix: str) -> None:
    name = f"throttled-{topic_prefix}"
    await set_quota(kafka.bootstrap, [name], "producer_byte_rate", 20_000)
    rig = rig_for(kafka.bootstrap, topic_prefix)
    client = KafkaBroker(kafka.bootstrap, client_id=name, rpc_timeout_ms=2_000)
    await client.start()
    tp = await eventually(lambda: rig.partition(client))
    value = random.Random(0).randbytes(100_000)

    async def write(sequence: int, producer: Producer) -> float:
        building = client.batch_builder(200_000)
        building.append(None, b"k", value, [])
        await client.add_partitions(producer, [tp])
        began = time.monotonic()
        await client.produce(producer, {tp: building.build(producer, sequence)})
        took = time.monotonic() - began
        await client.end_txn(producer, commit=True)
        return took

    producer = await client.init_producer_id(rig.name("writer"), 30_000)

    async def first() -> float:
        # The broker hears of a quota a little later than its controller.
        for sequence in range(10):
            await write(sequence, producer)
            if client.throttles.answers["Produce"]:
                return sequence + 1
            await asyncio.sleep(0.3)
        raise AssertionError("no answer said to wait")

    sequence = int(await first())
    wait = client.throttles.wait_s("Produce")
    assert wait > 2.5, "longer than a request may take"
    began = time.monotonic()
    await client.broker_count()
    await client.topics([tp.topic])
    assert time.monotonic() - began < wait, "what is not throttled does not wait"
    wait = client.throttles.wait_s("Produce")
    took = await write(sequence, producer)
    assert took > wait - 1
    await rig.until(lambda: _stable(client, tp))
    assert len(await rig.values(client, tp)) == sequence + 1
    await client.close()


# -- security


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and `server.pem` with its key."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    (tmp_path / "server.pem").write_text(key.read_text() + cert.read_text())
    return cert


async def kept_while_the_loop_is_held(connect: Callable[[], KafkaBroker], member: Membership) -> list[float]:
    """When the answered heartbeats were asked for that a thread sent meanwhile."""
    asked: list[float] = []

    def kept(membership: Membership, at: float) -> None:
        assert membership == member
        asked.append(at)

    thread = HeartbeatThread(
        connect, SystemClock(), to_keep=lambda: member, kept=kept, session_timeout_ms=2_000, max_block_ms=60_000
    )
    thread.start()
    await asyncio.sleep(0.1)
    time.sleep(2.5)  # noqa: ASYNC251
    thread.stop()
    return asked


async def test_tls_and_passwords_reach_every_connection(
    own_kafka: MakeKafka, certificate: Path, topic_prefix: str
) -> None:
    plain = own_kafka()
    plain.start()
    node = plain.nodes[0]
    plain.stop()
    tls_port, sasl_port = ports.choose(2)
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    secured = own_kafka(
        properties={
            "listeners": f"BROKER://127.0.0.1:{node.port},TLS://127.0.0.1:{tls_port},LOGIN://127.0.0.1:{sasl_port},"
            f"CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": f"BROKER://127.0.0.1:{node.port},TLS://127.0.0.1:{tls_port},"
            f"LOGIN://127.0.0.1:{sasl_port}",
            "listener.security.protocol.map": "BROKER:PLAINTEXT,TLS:SSL,LOGIN:SASL_SSL,CONTROLLER:PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(certificate.parent / "server.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(certificate),
            "listener.name.tls.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.login.plain.sasl.jaas.config": f'{login} username="b" password="b" user_semel="secret";',
            "listener.name.login.connections.max.reauth.ms": "2000",
        }
    )
    secured.start()

    async def works(port: int, security: Security) -> None:
        rig = rig_for(f"127.0.0.1:{port}", f"{topic_prefix}-{port}")
        client = KafkaBroker(f"127.0.0.1:{port}", rpc_timeout_ms=5_000, security=security)
        await client.start()
        tp = await eventually(lambda: rig.partition(client))
        await transaction(rig, client, rig.name("writer"), [tp], b"v")
        await rig.until(lambda: _stable(client, tp))
        assert await rig.values(client, tp) == [b"v"]
        member = await eventually(lambda: rig.member(client, rig.name("group")))
        assert await kept_while_the_loop_is_held(lambda: KafkaBroker(f"127.0.0.1:{port}", security=security), member)
        await client.close()

    key = str(certificate.parent / "key.pem")
    login_with = lambda password: Security(  # noqa: E731
        "SASL_SSL", ca_file=str(certificate), sasl_mechanism="PLAIN", username="semel", password=password
    )
    await works(tls_port, Security("SSL", ca_file=str(certificate), cert_file=str(certificate), key_file=key))
    await works(sasl_port, login_with("secret"))

    # A login that ends is renewed before the broker cuts the connection: no request is lost to it.
    client = KafkaBroker(f"127.0.0.1:{sasl_port}", rpc_timeout_ms=5_000, security=login_with("secret"))
    await client.start()
    until = time.monotonic() + 7
    while time.monotonic() < until:
        await client.broker_count()
        await asyncio.sleep(0.05)
    # Longer than a login lasts, and nothing asked meanwhile.
    await asyncio.sleep(3)
    await client.broker_count()
    await client.close()

    async def refused(port: int, security: Security) -> RpcError | RpcLost:
        client = KafkaBroker(f"127.0.0.1:{port}", rpc_timeout_ms=5_000, security=security)
        with pytest.raises((RpcError, RpcLost)) as error:
            await client.start()
        await client.close()
        return error.value

    wrong_password = await refused(sasl_port, login_with("wrong"))
    assert isinstance(wrong_password, RpcError)
    assert wrong_password.code == 58
    unknown_authority = await refused(sasl_port, Security("SSL"))
    assert "certificate is not trusted" in str(unknown_authority)
    no_certificate = await refused(tls_port, Security("SSL", ca_file=str(certificate)))
    assert isinstance(no_certificate, RpcLost)
