"""One question to one broker, DescribeCluster: which cluster are you, and who is in it?

A listening port proves little: Kafka binds it well before it serves, and it may be somebody else's.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from semel.local.properties import HOST

_API_DESCRIBE_CLUSTER = 60
_EMPTY_TAGS = b"\x00"


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as one broker sees it; `brokers` holds the ids of those that are registered and serving."""

    cluster_id: str
    brokers: frozenset[int]


def ask(port: int, timeout_s: float = 2.0) -> ClusterView | None:
    """The answer of the broker on this port of the loopback; None where no Kafka answers yet."""
    header = struct.pack(">hhih", _API_DESCRIBE_CLUSTER, 0, 1, -1) + _EMPTY_TAGS
    request = header + b"\x00" + _EMPTY_TAGS
    try:
        with socket.create_connection((HOST, port), timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _receive(connection, 4))
            if not 0 < size < 1 << 20:
                return None
            return parse_answer(_receive(connection, size))
    except (OSError, EOFError, ValueError, struct.error):
        return None


def parse_answer(frame: bytes) -> ClusterView | None:
    """A DescribeCluster v0 response without its length; None where the broker answers with an error."""
    reader = _Reader(frame)
    reader.skip(4)  # correlation id
    reader.tags()
    reader.skip(4)  # throttle time
    error = reader.int16()
    reader.text()  # error message
    if error:
        return None
    cluster_id = reader.text()
    reader.skip(4)  # controller id
    brokers: list[int] = []
    for _ in range(reader.varint() - 1):
        brokers.append(reader.int32())
        reader.text()  # host
        reader.skip(4)  # port
        reader.text()  # rack
        reader.tags()
    return ClusterView(cluster_id or "", frozenset(brokers))


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise EOFError("the peer closed the connection")
        received += part
    return received


class _Reader:
    """Kafka's flexible wire types, front to back. Raises ValueError past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def skip(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise ValueError("the answer is shorter than it says")
        return self._data[start : self._at]

    def int16(self) -> int:
        return int.from_bytes(self.skip(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self.skip(4), "big", signed=True)

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.skip(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str | None:
        size = self.varint()
        return self.skip(size - 1).decode() if size else None

    def tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            self.skip(self.varint())
