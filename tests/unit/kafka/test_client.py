from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator

import pytest
from aiokafka.errors import BrokerResponseError, IllegalSaslStateError, KafkaConnectionError

from semel.codes import Code, describe, severity
from semel.kafka import KafkaBroker, Security, apis
from semel.kafka.client import in_parallel
from semel.kafka.connection import Address, _refused_login, _why_closed, check_versions
from semel.port import RpcError, RpcLost


@pytest.fixture
async def silent_server() -> AsyncIterator[int]:
    """A port that accepts connections and never says a word, as a stopped broker's does."""
    connected: list[asyncio.StreamWriter] = []

    async def keep(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in connected:
        writer.close()


@pytest.fixture
def refusing_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


async def test_no_broker_is_a_loss_of_something_never_sent(refusing_port: int) -> None:
    broker = KafkaBroker(f"127.0.0.1:{refusing_port}")
    with pytest.raises(RpcLost, match=f"Metadata got no answer: 127.0.0.1:{refusing_port}") as lost:
        await broker.start()
    assert lost.value.sent is False
    await broker.close()


async def test_silence_ends_at_the_rpc_bound(silent_server: int) -> None:
    broker = KafkaBroker(f"127.0.0.1:{silent_server}", rpc_timeout_ms=200)
    began = time.monotonic()
    with pytest.raises(RpcLost, match="no connection in time") as lost:
        await broker.start()
    assert lost.value.sent is False
    assert 0.15 < time.monotonic() - began < 1.0
    await broker.close()


async def test_every_address_has_its_turn_within_one_bound(silent_server: int, refusing_port: int) -> None:
    addresses = f"127.0.0.1:{silent_server},localhost:{silent_server},127.0.0.1:{refusing_port}"
    broker = KafkaBroker(addresses, rpc_timeout_ms=400)
    began = time.monotonic()
    with pytest.raises(RpcLost) as lost:
        await broker.start()
    assert time.monotonic() - began < 1.0
    assert all(address in lost.value.detail for address in addresses.split(","))
    await broker.close()


async def test_a_broker_that_is_to_be_waited_for_holds_up_none_of_the_others(
    silent_server: int, refusing_port: int
) -> None:
    broker = KafkaBroker(f"127.0.0.1:{silent_server},127.0.0.1:{refusing_port}", rpc_timeout_ms=200)
    client = broker._client
    client.throttles.heard("Metadata", Address("127.0.0.1", silent_server), 60_000)
    asking = asyncio.create_task(client.metadata((), client.deadline()))
    async with asyncio.timeout(10):
        while Address("127.0.0.1", refusing_port) not in client._unreachable:  # noqa: ASYNC110  (it rings no bell)
            await asyncio.sleep(0.01)
    asking.cancel()
    await broker.close()


async def test_a_wait_that_one_broker_asks_for_takes_no_time_from_the_others(silent_server: int) -> None:
    first, second = Address("127.0.0.1", silent_server), Address("localhost", silent_server)
    broker = KafkaBroker(f"{first},{second}", rpc_timeout_ms=400)
    client = broker._client
    client.throttles.heard("Metadata", first, 600)
    client.throttles.heard("Metadata", second, 800)
    began = time.monotonic()
    with pytest.raises(RpcLost):
        await client.metadata((), client.deadline())
    assert time.monotonic() - began > 0.75 + 0.2, "the wait of the second, and its share of the bound"
    await broker.close()


async def test_a_server_that_is_no_kafka_is_a_loss_too() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\4SSH-")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    broker = KafkaBroker(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", rpc_timeout_ms=500)
    with pytest.raises(RpcLost):
        await broker.start()
    await broker.close()
    server.close()


async def test_a_cancelled_start_leaves_nothing_behind(silent_server: int) -> None:
    before = asyncio.all_tasks()
    broker = KafkaBroker(f"127.0.0.1:{silent_server}")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(broker.start(), 0.05)
    await broker.close()
    await asyncio.sleep(0.01)
    assert {task for task in asyncio.all_tasks() - before if "silent_server" not in repr(task)} == set()


async def test_a_closed_client_sends_nothing(silent_server: int) -> None:
    broker = KafkaBroker(f"127.0.0.1:{silent_server}")
    await broker.close()
    with pytest.raises(RpcLost, match="the client is closed") as lost:
        await broker.broker_count()
    assert lost.value.sent is False


async def answer(value: int | Exception) -> int:
    await asyncio.sleep(0)
    if isinstance(value, Exception):
        raise value
    return value


LOST = RpcLost("Produce", "cut", sent=True)
UNSENT = RpcLost("Produce", "refused", sent=False)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([1, RpcError("Produce", 6), RpcError("Produce", 10)], 10),
        ([RpcError("Produce", 47), RpcError("Produce", 10), LOST], 47),
        ([RpcError("Produce", 55), RpcError("Produce", 6)], 6),
        ([RpcError("Produce", 999), RpcError("Produce", 6)], 999),
    ],
)
async def test_the_worst_of_several_refusals_decides(outcomes: list[int | Exception], code: int) -> None:
    with pytest.raises(RpcError) as refused:
        await in_parallel("Produce", [answer(outcome) for outcome in outcomes])
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("outcomes", "sent"),
    [([LOST, RpcError("Produce", 10)], True), ([UNSENT, UNSENT], False), ([1, UNSENT], True), ([UNSENT, LOST], True)],
)
async def test_a_loss_outweighs_a_refusal_and_counts_as_sent_if_anything_was(
    outcomes: list[int | Exception], sent: bool
) -> None:
    with pytest.raises(RpcLost) as lost:
        await in_parallel("Produce", [answer(outcome) for outcome in outcomes])
    assert lost.value.sent is sent


async def test_all_answers_come_in_the_order_of_the_requests() -> None:
    assert await in_parallel("Produce", [answer(1), answer(2)]) == [1, 2]


def test_a_broker_that_is_too_old_is_told_what_it_lacks() -> None:
    kafka_2_4 = {api.key: (0, api.version) for api in apis.ALL} | {apis.OFFSET_FETCH.key: (0, 6)}
    del kafka_2_4[apis.LIST_TRANSACTIONS.key]
    with pytest.raises(
        RpcError, match=r"h:1 lacks ListTransactions v0, OffsetFetch v7; semel needs Kafka 3"
    ) as refused:
        check_versions(Address("h", 1), kafka_2_4)
    assert refused.value.code == 35


def test_codes_aiokafka_does_not_know_have_the_names_that_kafka_gives_them() -> None:
    names = [Code(code).name for code in (74, 76, 82, 87, 88, 90, 103, 105, 120)]
    assert names == [
        "FENCED_LEADER_EPOCH",
        "UNSUPPORTED_COMPRESSION_TYPE",
        "FENCED_INSTANCE_ID",
        "INVALID_RECORD",
        "UNSTABLE_OFFSET_COMMIT",
        "PRODUCER_FENCED",
        "INCONSISTENT_TOPIC_ID",
        "TRANSACTIONAL_ID_NOT_FOUND",
        "TRANSACTION_ABORTABLE",
    ]
    assert describe(19, "too few", at="t-3") == "NOT_ENOUGH_REPLICAS at t-3: too few"
    assert describe(999) == "not in semel's table of error codes"


def test_a_refusal_weighs_more_than_a_delay_and_fencing_most() -> None:
    assert severity(90) > severity(10) > severity(51) > severity(55)


# -- why nobody is let in


class _Refused(BrokerResponseError):
    def __init__(self, errno: int, said: str) -> None:
        self.errno = errno  # pyright: ignore[reportIncompatibleVariableOverride]
        super().__init__(said)


def test_a_refused_login_says_what_to_correct_and_neither_who_asked_nor_a_secret() -> None:
    options = {"sasl_plain_username": "ann", "sasl_plain_password": "hunter2", "sasl_mechanism": "PLAIN"}
    refused = _refused_login(_Refused(58, "invalid credentials"), options)
    assert (refused.api, refused.code) == ("SaslAuthenticate", 58)
    for words in ("SASL_AUTHENTICATION_FAILED", "invalid credentials", "[broker_security]", "PLAIN"):
        assert words in str(refused)
    assert "hunter2" not in str(refused) and "ann" not in str(refused)
    assert "sasl_mechanism" in str(_refused_login(_Refused(33, "unsupported"), options))


@pytest.mark.parametrize(
    ("protocol", "error", "said"),
    [
        ("SASL_SSL", ConnectionResetError(), "this may be a listener without TLS"),
        ("SSL", ssl.SSLError(1, "wrong version number"), "protocol is SSL: this may be a listener without TLS"),
        ("SSL", KafkaConnectionError("closed"), "broker_security.cert_file"),
        ("PLAINTEXT", KafkaConnectionError("closed"), "protocol is PLAINTEXT: this may be a listener with TLS"),
        ("SASL_PLAINTEXT", ConnectionResetError(), "this may be a listener with TLS"),
        ("SASL_SSL", IllegalSaslStateError(), "takes no login, and broker_security.protocol is SASL_SSL"),
        ("SASL_SSL", ssl.SSLCertVerificationError(1, "self-signed"), "broker_security.ca_file"),
        ("SASL_SSL", ConnectionRefusedError(111, "Connect call failed"), "Connect call failed"),
        ("PLAINTEXT", OSError(), "OSError"),
    ],
)
def test_a_connection_that_fails_says_which_setting_may_be_wrong(protocol: str, error: Exception, said: str) -> None:
    found = _why_closed(error, {} if protocol == "PLAINTEXT" else {"security_protocol": protocol})
    assert said in found


async def test_a_listener_that_hangs_up_at_plaintext_is_said_to_want_tls() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for security, said in ((None, "with TLS"), (Security("SSL"), "without TLS")):
        broker = KafkaBroker(f"127.0.0.1:{port}", security=security)
        with pytest.raises(RpcLost, match=said):
            await broker.start()
        await broker.close()
    server.close()
