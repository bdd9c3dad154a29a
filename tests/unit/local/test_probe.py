from __future__ import annotations

import socket
import threading

from semel.local import ports
from semel.local.probe import ClusterView, ask, parse_answer

# The start of a DescribeCluster v0 answer: correlation id, no tags, no throttling.
ANSWER_HEAD = bytes.fromhex("000000010000000000")


def text(value: str) -> bytes:
    return bytes([len(value) + 1]) + value.encode()


def broker(node: int) -> bytes:
    return node.to_bytes(4, "big") + text("127.0.0.1") + (20000).to_bytes(4, "big") + b"\x00" + b"\x00"


def test_an_answer_names_the_cluster_and_the_brokers_that_serve() -> None:
    frame = ANSWER_HEAD + b"\x00\x00" + b"\x00" + text("abc") + b"\x00\x00\x00\x01" + b"\x03" + broker(1) + broker(3)
    assert parse_answer(frame) == ClusterView("abc", frozenset({1, 3}))


def test_an_answer_with_an_error_is_no_answer() -> None:
    assert parse_answer(ANSWER_HEAD + b"\x00\x23" + text("unsupported")) is None


def test_a_port_nobody_listens_on_gives_none() -> None:
    assert ask(ports.choose(1)[0]) is None


def test_something_that_is_no_kafka_gives_none() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert ask(server.getsockname()[1]) is None
    thread.join()
    server.close()
