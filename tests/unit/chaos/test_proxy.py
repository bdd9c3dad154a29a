"""The proxy, between two ends that speak as much Kafka as it knows."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable

import pytest

from semel.chaos.proxy import Api, Proxy, Side, Trouble
from semel.local import ports


def request(api: int, correlation: int, client: str = "app-w1") -> bytes:
    body = struct.pack(">hhih", api, 3, correlation, len(client)) + client.encode() + b"payload"
    return struct.pack(">i", len(body)) + body


class Ends:
    """A broker that answers every request with its correlation id, and notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.proxy = Proxy(0, 0)

    async def broker(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                frame = await reader.readexactly(struct.unpack(">i", await reader.readexactly(4))[0])
                api, _, correlation = struct.unpack_from(">hhi", frame)
                self.seen.append((api, correlation))
                answer = struct.pack(">i", correlation) + b"answer"
                writer.write(struct.pack(">i", len(answer)) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.proxy.port)


async def answer(reader: asyncio.StreamReader) -> int:
    """The correlation id of the next answer; EOFError or ConnectionError where the connection ended."""
    async with asyncio.timeout(5):
        frame = await reader.readexactly(struct.unpack(">i", await reader.readexactly(4))[0])
    return struct.unpack_from(">i", frame)[0]


def losing(ends: Ends, trouble: Trouble) -> Trouble:
    ends.proxy.troubles.append(trouble)
    return trouble


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    behind, before = ports.choose(2)
    server = await asyncio.start_server(made.broker, "127.0.0.1", behind)
    made.proxy = Proxy(before, behind)
    async with made.proxy:
        yield made
    server.close()


async def test_frames_pass_in_both_directions(ends: Ends) -> None:
    reader, writer = await ends.connect()
    for n in range(3):
        writer.write(request(Api.Produce, n))
        assert await answer(reader) == n
    assert ends.seen == [(Api.Produce, n) for n in range(3)]
    writer.close()


async def test_a_lost_request_never_arrives_and_its_connection_ends(ends: Ends) -> None:
    rule = losing(ends, Trouble(side=Side.REQUESTS, api=Api.EndTxn, nth=2))
    reader, writer = await ends.connect()
    writer.write(request(Api.EndTxn, 1) + request(Api.Produce, 2))
    assert [await answer(reader), await answer(reader)] == [1, 2]
    writer.write(request(Api.EndTxn, 3))
    with pytest.raises((EOFError, ConnectionError)):
        await answer(reader)
    assert rule.done.is_set()
    assert ends.seen == [(Api.EndTxn, 1), (Api.Produce, 2)]


async def test_a_lost_answer_is_of_a_request_that_arrived(ends: Ends) -> None:
    rule = losing(ends, Trouble(side=Side.ANSWERS, api=Api.EndTxn))
    reader, writer = await ends.connect()
    writer.write(request(Api.EndTxn, 1))
    with pytest.raises((EOFError, ConnectionError)):
        await answer(reader)
    assert rule.done.is_set()
    assert ends.seen == [(Api.EndTxn, 1)]
    # Once only: the next connection works.
    reader, writer = await ends.connect()
    writer.write(request(Api.EndTxn, 2))
    assert await answer(reader) == 2
    writer.close()


async def test_a_rule_for_one_client_leaves_the_others_alone(ends: Ends) -> None:
    rule = losing(ends, Trouble("app-w2", Side.ANSWERS, api=Api.EndTxn))
    reader, writer = await ends.connect()
    writer.write(request(Api.EndTxn, 1, "app-w1"))
    assert await answer(reader) == 1
    assert not rule.done.is_set()
    ends.proxy.troubles.remove(rule)
    other, to = await ends.connect()
    to.write(request(Api.EndTxn, 2, "app-w2"))
    assert await answer(other) == 2
    writer.close()
    to.close()


async def test_connections_of_a_client_are_cut_and_others_go_on(ends: Ends) -> None:
    pairs = [await ends.connect() for _ in range(2)]
    for (reader, writer), client in zip(pairs, ("app-w1", "app-w2"), strict=True):
        writer.write(request(Api.Produce, 1, client))
        assert await answer(reader) == 1
    assert ends.proxy.cut("app-w1") == 1
    with pytest.raises((EOFError, ConnectionError)):
        await answer(pairs[0][0])
    pairs[1][1].write(request(Api.Produce, 2, "app-w2"))
    assert await answer(pairs[1][0]) == 2
    pairs[1][1].close()


async def test_silent_frames_arrive_when_the_silence_is_over(ends: Ends) -> None:
    reader, writer = await ends.connect()
    trouble = Trouble(side=Side.REQUESTS)
    with ends.proxy.trouble(trouble):
        writer.write(request(Api.Produce, 1))
        await until(lambda: trouble.touched == 1)
        assert ends.seen == []
    assert await answer(reader) == 1
    writer.close()


async def test_silent_answers_are_of_requests_that_arrived(ends: Ends) -> None:
    reader, writer = await ends.connect()
    trouble = Trouble(side=Side.ANSWERS)
    with ends.proxy.trouble(trouble):
        writer.write(request(Api.Produce, 1))
        await until(lambda: trouble.touched == 1)
        assert ends.seen == [(Api.Produce, 1)]
    assert await answer(reader) == 1
    writer.close()


async def test_delayed_frames_take_their_time(ends: Ends) -> None:
    reader, writer = await ends.connect()
    with ends.proxy.trouble(Trouble(delay_s=0.1)):
        began = time.monotonic()
        writer.write(request(Api.Produce, 1))
        assert await answer(reader) == 1
        assert time.monotonic() - began >= 0.19  # there and back
    writer.close()


async def test_where_all_is_refused_nothing_passes_and_what_was_open_is_cut(ends: Ends) -> None:
    reader, writer = await ends.connect()
    writer.write(request(Api.Produce, 1))
    assert await answer(reader) == 1
    with ends.proxy.trouble(Trouble(refuses=True)):
        with pytest.raises((EOFError, ConnectionError)):
            await answer(reader)
        again, to = await ends.connect()
        to.write(request(Api.Produce, 2))
        with pytest.raises((EOFError, ConnectionError)):
            await answer(again)
    assert ends.seen == [(Api.Produce, 1)]
    reader, writer = await ends.connect()
    writer.write(request(Api.Produce, 3))
    assert await answer(reader) == 3
    writer.close()


@pytest.mark.parametrize("side", Side)
async def test_a_half_closed_connection_ends(ends: Ends, side: Side) -> None:
    reader, writer = await ends.connect()
    writer.write(request(Api.Produce, 1))
    assert await answer(reader) == 1
    assert ends.proxy.half_close(side=side) == 1
    with pytest.raises((EOFError, ConnectionError)):
        writer.write(request(Api.Produce, 2))
        await answer(reader)
        await answer(reader)
    writer.close()


async def test_a_broker_that_is_away_is_a_connection_that_ends() -> None:
    before, nobody = ports.choose(2)
    async with Proxy(before, nobody):
        reader, writer = await asyncio.open_connection("127.0.0.1", before)
        writer.write(request(Api.Produce, 1))
        with pytest.raises((EOFError, ConnectionError)):
            await answer(reader)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  (counted by the proxy, which rings no bell)
            await asyncio.sleep(0.005)
