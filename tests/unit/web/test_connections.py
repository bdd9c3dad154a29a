"""Readers that hold connections: half a request, none at all, an answer that is not read, more of them than there is room."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket

import pytest

from semel.web import connections
from semel.web.answer import Refusal
from semel.web.connections import Connections, listen, most_connections
from semel.web.quiet import Seldom
from tests.unit.forked import forked


async def half_sent(worker, count, sent=b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: "):
    held = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", worker.server.port)
        writer.write(sent)
        held.append((reader, writer))
    return held


async def release(held):
    for _, writer in held:
        writer.close()
    for _, writer in held:
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until(holds, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: ",
        b"POST /livez HTTP/1.1\r\nContent-Length: 100000\r\n\r\nabc",
    ],
    ids=["nothing", "half a request", "half a body"],
)
async def test_whoever_asks_finds_room_while_a_thousand_hold_half_sent_requests(sent, start, group, keyed, caplog):
    caplog.set_level(logging.INFO)
    (worker,) = await start(group(t=keyed({"k": 1})), "a")
    before = open_files()
    held = []
    for _ in range(10):
        held += await half_sent(worker, 100, sent)
        assert (await worker.get("/livez")).status == 200
        assert (await worker.get("/tables/t/k")).status == 200
    assert len(worker.server._connections) <= most_connections()
    # Our own end of each is a file of this process as well.
    assert open_files() - before - len(held) <= most_connections() + 10
    lines = [record for record in caplog.records if record.name.startswith("semel")]
    assert len(lines) <= 5
    assert not any(record.exc_info for record in lines)
    await release(held)


async def test_half_a_request_is_closed_after_a_while_and_so_is_an_idle_connection(start, group, keyed, monkeypatch):
    monkeypatch.setattr("semel.web.server.IDLE_S", 0.3)
    (worker,) = await start(group(t=keyed({"k": 1})), "a")
    [(half, first)] = held = await half_sent(worker, 1)
    [(idle, _)] = answered = await half_sent(worker, 1, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await idle.readline()).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(5):
        dripping = asyncio.create_task(drip(first))
        assert await half.read() == b""
        await idle.read()
        dripping.cancel()
    await release(held + answered)


async def drip(writer):
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"b")
            await asyncio.sleep(0.05)


async def test_an_answer_that_is_not_read_is_given_up(start, group, keyed, monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_S", 0.5)
    monkeypatch.setattr(connections, "SWEEP_S", 0.1)
    (worker,) = await start(group(t=keyed({f"k{n}": "x" * 30_000 for n in range(100)})), "a")
    slow = await slow_reader(worker, b"GET /tables/t HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await until(lambda: len(worker.server._connections) == 1)
    await until(lambda: len(worker.server._connections) == 0)
    slow.close()


async def test_answers_that_are_not_read_take_a_bounded_part_of_memory(start, group, keyed, monkeypatch, caplog):
    monkeypatch.setattr(connections, "UNREAD_BYTES_MAX", 8 << 20)
    (worker,) = await start(group(t=keyed({f"k{n}": "x" * 30_000 for n in range(100)})), "a")
    held = [await slow_reader(worker, b"GET /tables/t HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") for _ in range(12)]

    def unread():
        return [c.transport.get_write_buffer_size() for c in worker.server._connections._open.values()]

    await until(
        lambda: sum(unread()) > 4 << 20 and not any(c.in_hand for c in worker.server._connections._open.values())
    )
    assert sum(unread()) <= 8 << 20
    assert len((await worker.get("/tables/t")).json["rows"]) == 100
    assert "wait to be read" in caplog.text
    for slow in held:
        slow.close()


async def slow_reader(worker, sent):
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(slow, ("127.0.0.1", worker.server.port))
    await loop.sock_sendall(slow, sent)
    return slow


async def test_a_request_in_hand_is_not_closed_for_those_that_only_hold_on(start, group, keyed, monkeypatch):
    monkeypatch.setattr("semel.web.connections.most_connections", lambda: 5)
    (worker,) = await start(group(t=keyed({"k": 1})), "a")
    go = asyncio.Event()

    async def waits(self, url, path, shape):
        await go.wait()
        raise Refusal(503, "it went")

    monkeypatch.setattr("semel.web.owner.Peers.get", waits)
    worker.view.group.urls["b"] = "http://127.0.0.1:1"
    worker.view.group.holder = dict.fromkeys(range(4), "b")
    asking = asyncio.create_task(worker.get("/tables/t/k"))
    await until(lambda: any(c.in_hand for c in worker.server._connections._open.values()))
    held = await half_sent(worker, 30)
    await asyncio.sleep(0.2)
    go.set()
    assert (await asking).json["error"] == "it went"
    await release(held)


async def test_where_no_descriptor_is_left_that_is_said_once_and_waited_out(monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    class Free:
        async def turn(self, seconds):
            await asyncio.sleep(0)

    pauses = 0
    inner = asyncio.sleep

    async def pause(seconds):
        nonlocal pauses
        pauses += seconds == 1
        await inner(0.001 if seconds == 1 else seconds)

    async def refuse(listening):
        await inner(0)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    [listening] = await listen("127.0.0.1", 0)
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", refuse, raising=False)
    monkeypatch.setattr(connections.asyncio, "sleep", pause)
    held = Connections(Free())
    held.serve(None, [listening])
    while pauses < 20:
        await inner(0.005)
    await held.close()
    assert [record.getMessage() for record in caplog.records if "reader" in record.getMessage()] == [
        "no reader can connect: Too many open files; raise the limit of open files"
    ]


@pytest.mark.parametrize(("soft", "most"), [(1024, 100), (256, 32), (20, 8), (resource.RLIM_INFINITY, 100)])
def test_readers_get_a_part_of_the_descriptors(soft, most, monkeypatch):
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (soft, soft))

    assert most_connections() == most


async def test_a_name_with_several_addresses_is_listened_on_at_one_port():
    sockets = await listen("localhost", 0)

    assert len({s.getsockname()[1] for s in sockets}) == 1
    for s in sockets:
        s.close()


# -- what cannot be read


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200 + b"\r\n\r\n",
    b"GET /livez HTTP/9.9\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"G\xffT / HTTP/1.1\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"GET /%0d%0a2026-11-26 ERROR forged HTTP/1.1\r\n\r\n",
]


async def test_requests_that_are_no_http_make_a_line_for_each_kind_and_no_traceback(start, group, keyed, caplog):
    caplog.set_level(logging.INFO)
    (worker,) = await start(group(t=keyed({"k": 1})), "a")
    for _ in range(10):
        for raw in NO_HTTP:
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.server.port)
            writer.write(raw)
            async with asyncio.timeout(5):
                assert b" 400 " in (await reader.read(100)) or b" 404 " in raw
            writer.close()
    records = [r for r in caplog.records if r.name.startswith(("semel", "aiohttp"))]
    assert len(records) <= len(NO_HTTP) + 1
    assert not any(r.exc_info or r.levelno > logging.INFO for r in records)
    assert not any("\n" in r.getMessage() for r in records)
    assert (await worker.get("/livez")).status == 200


async def test_a_failure_inside_is_told_once_on_one_line_whatever_the_path_holds(
    start, group, keyed, monkeypatch, caplog
):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(worker.view, "get", broken)
    for n in range(20):
        answer = await worker.get(f"/tables/t/{n}%0A2026-11-26%2000:00:00%20ERROR%20forged" + "x" * 5000)
        assert answer.status == 500
    [record] = [r for r in caplog.records if r.name == "semel.web"]
    assert record.exc_info
    assert "\n" not in record.getMessage() and len(record.getMessage()) < 400


def test_a_kind_is_told_of_again_after_a_while_with_how_often_it_was_not():
    now = [0.0]
    seldom = Seldom(60, lambda: now[0])
    assert [seldom.due("a"), seldom.due("b"), seldom.due("a"), seldom.due("a")] == [
        (True, 0), (True, 0), (False, 0), (False, 0),
    ]  # fmt: skip
    now[0] = 61.0
    assert [seldom.due("a"), seldom.due("b")] == [(True, 2), (True, 0)]


def test_kinds_without_end_are_one():
    seldom = Seldom()
    assert sum(seldom.due(n)[0] for n in range(10_000)) <= 101


async def test_a_process_that_a_handler_forks_keeps_no_port_of_a_worker_that_is_gone():
    [listening] = await listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    with forked():
        listening.close()
        [again] = await listen("127.0.0.1", port)
        again.close()
