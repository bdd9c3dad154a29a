"""What semel.kafka relies on in aiokafka beyond its documented API: an aiokafka that breaks one says so here."""

from __future__ import annotations

import asyncio
import inspect
import struct
from collections import deque
from io import BytesIO
from pathlib import Path

import pytest
from aiokafka import codec, conn
from aiokafka.errors import IncompatibleBrokerVersion, SaslAuthenticationFailed, UnsupportedSaslMechanismError
from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

import semel.kafka
from semel.kafka import apis
from semel.kafka.wire import Call


def test_records_are_read_and_built_in_c() -> None:
    for name in (MemoryRecords, DefaultRecordBatch, DefaultRecordBatchBuilder):
        assert "_crecords" in name.__module__, f"{name} is the pure Python fallback: 30 times slower"


def test_the_builder_takes_its_arguments_in_this_order() -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 1, -1, -1, 0, 90)
    assert builder.append(0, 5, b"k", b"v", [("h", None)]) is not None
    assert builder.append(1, 5, b"k", b"v" * 60, []) is None
    builder.set_producer_state(9, 8, 7)
    batch = MemoryRecords(bytes(builder.build())).next_batch()
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (9, 8, 7)
    assert (batch.is_transactional, batch.is_control_batch, batch.next_offset, batch.base_offset) == (True, False, 1, 0)
    assert (batch.compression_type, batch.timestamp_type, batch.validate_crc()) == (0, 0, True)
    (record,) = list(batch)
    assert (record.offset, record.timestamp, record.key, record.value) == (0, 5, b"k", b"v")
    assert record.headers == [("h", None)]


def test_the_connection_takes_these_keywords() -> None:
    names = set(inspect.signature(conn.AIOKafkaConnection).parameters)
    assert names >= {
        "host",
        "port",
        "client_id",
        "request_timeout_ms",
        "ssl_context",
        "security_protocol",
        "max_idle_ms",
        "sasl_mechanism",
        "sasl_plain_username",
        "sasl_plain_password",
    }


class Sent(asyncio.Transport):
    """Stands where the socket would, to look at what the connection writes."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        pass


async def test_the_connection_asks_of_a_request_what_a_call_answers() -> None:
    connection = conn.AIOKafkaConnection("h", 1, client_id="me", request_timeout_ms=60_000)
    assert connection._versions == {}
    sent = Sent()
    connection._writer = sent
    connection._versions = {apis.HEARTBEAT.key: (0, 4), apis.METADATA.key: (0, 12)}
    with pytest.raises(IncompatibleBrokerVersion):
        connection.send(apis.OFFSET_FETCH("g", [], True))

    reply = asyncio.ensure_future(connection.send(apis.HEARTBEAT("g", 3, "m", None)))
    body = b"\0\1g\0\0\0\3\0\1m\xff\xff"
    header = struct.pack(">hhi", 12, 3, 1) + b"\0\2me"
    assert sent.data == struct.pack(">i", len(header + body)) + header + body
    await asyncio.sleep(0)
    connection._handle_frame(struct.pack(">iih", 1, 0, 27))
    assert tuple(await reply) == (0, 27)

    flexible = asyncio.ensure_future(connection.send(apis.METADATA([], False, False, False)))
    await asyncio.sleep(0)
    flexible.cancel()
    await asyncio.sleep(0)
    connection._handle_frame(b"\0\0\0\2\0 an answer nobody waits for is dropped unread")
    assert connection._requests == deque()
    connection._writer = None


def test_the_connection_knows_if_it_is_open_and_closes_at_once() -> None:
    assert not inspect.iscoroutinefunction(conn.AIOKafkaConnection.close)
    assert not inspect.iscoroutinefunction(conn.AIOKafkaConnection.connected)
    assert not inspect.iscoroutinefunction(conn.AIOKafkaConnection.send)


def test_a_refused_login_has_its_code() -> None:
    assert (SaslAuthenticationFailed.errno, UnsupportedSaslMechanismError.errno) == (58, 33)


def test_a_login_request_is_of_the_classes_kept_out_of_the_log() -> None:
    for version in (0, 1):
        request = SaslAuthenticateRequest(b"").prepare({36: (0, version)})
        assert type(request).__name__ == f"SaslAuthenticateRequest_v{version}"


def test_every_codec_can_be_asked_for_and_decodes() -> None:
    for name in ("gzip", "snappy", "lz4", "zstd"):
        assert getattr(codec, f"has_{name}")()
        encoded = getattr(codec, f"{name}_encode")(b"abc" * 100)
        assert bytes(getattr(codec, f"{name}_decode")(encoded)) == b"abc" * 100


def test_a_varint_is_read_with_the_position_after_it() -> None:
    assert decode_varint(bytearray(b"\x01\xac\x02"), 1) == (150, 3)


@pytest.mark.parametrize("api", apis.ALL, ids=lambda api: api.name)
def test_every_api_is_sent_in_its_one_version_or_not_at_all(api: apis.Api) -> None:
    call = Call(api, ())
    assert call.prepare({api.key: (0, api.version)}) is call
    for versions in ({}, {api.key: (api.version + 1, 99)}, {api.key: (0, api.version - 1)}):
        with pytest.raises(IncompatibleBrokerVersion):
            call.prepare(versions)
    header = call.build_request_header(correlation_id=5, client_id="c").encode()
    assert header == struct.pack(">hhi", api.key, api.version, 5) + b"\0\1c" + (b"\0" if api.flexible else b"")
    reply = BytesIO(b"\0\0\0\5" + (b"\0" if api.flexible else b""))
    assert call.parse_response_header(reply).correlation_id == 5
    assert reply.read() == b""


def test_no_other_package_knows_aiokafka() -> None:
    source = Path(semel.kafka.__path__[0]).parent
    importing = {
        path.relative_to(source).parts[0]
        for path in source.rglob("*.py")
        if any(line.lstrip().startswith(("import aiokafka", "from aiokafka")) for line in path.read_text().splitlines())
    }
    assert importing == {"kafka"}
