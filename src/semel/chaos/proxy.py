"""A TCP proxy between workers and a broker that knows two things about Kafka: which request is which, and whose it is.

It can lose a request before the broker sees it, or the broker's answer to it, and cut that connection; it can cut,
delay, silence or half-close whole connections, or let no new one through: what a network does at the worst moment.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, IntEnum

_SIZE = struct.Struct(">i")
_HEAD = struct.Struct(">hhih")  # api key, api version, correlation id, length of the client id


class Api(IntEnum):
    """Requests that may be lost, as Kafka names and numbers them."""

    Produce = 0
    InitProducerId = 22
    AddPartitionsToTxn = 24
    AddOffsetsToTxn = 25
    EndTxn = 26
    TxnOffsetCommit = 28


class Side(Enum):
    """Of what is lost: of a request the broker never hears, on an answer it acted, and nobody hears of that."""

    REQUESTS = "towards the broker"
    ANSWERS = "towards the worker"


@dataclass(eq=False)
class Trouble:
    """What goes wrong with frames of a client (empty: of all) towards a side (None: towards both), until it is over.

    `api`: the `nth` exchange of it is lost, once, and its connection cut. Without one it lasts: frames take `delay_s` more,
    or all connections end (`refuses`), or, with neither, frames are silent: held, not lost, and when it is over they arrive,
    as packets do that were on their way. `touched` counts what it has met; `done`: an exchange was lost.
    """

    client: str = ""
    side: Side | None = None
    delay_s: float = 0.0
    refuses: bool = False
    api: Api | None = None
    nth: int = 1
    touched: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def meets(self, client: str, side: Side) -> bool:
        return self.api is None and self.client in ("", client) and self.side in (None, side) and not self.over.is_set()

    def loses(self, client: str, api: int) -> bool:
        """Whether it is this request, or the answer to it, that is lost."""
        if api != self.api or self.client not in ("", client):
            return False
        self.touched += 1
        return self.touched == self.nth


@dataclass(eq=False)
class _Connection:
    """`client`: that of its first request; `awaited`: of which requests the answer is to be lost, by correlation id."""

    to_worker: asyncio.StreamWriter
    to_broker: asyncio.StreamWriter
    client: str = ""
    awaited: dict[int, Trouble] = field(default_factory=dict[int, Trouble])


class Proxy:
    """Listens on `port` for the broker on `target`, both of the loopback. `async with` it. `troubles`: those in force."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.troubles: list[Trouble] = []
        self._open: set[_Connection] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    # -- what goes wrong

    def cut(self, client: str = "") -> int:
        """Reset the open connections of a client, or all; how many that were."""
        cut = self._of(client)
        for connection in cut:
            connection.to_worker.transport.abort()
            connection.to_broker.transport.abort()
        return len(cut)

    def half_close(self, client: str = "", side: Side = Side.ANSWERS) -> int:
        """End one direction of the open connections; how many that were."""
        closed = 0
        for connection in self._of(client):
            with suppress(OSError, RuntimeError):
                (connection.to_worker if side is Side.ANSWERS else connection.to_broker).write_eof()
                closed += 1
        return closed

    @contextmanager
    def trouble(self, trouble: Trouble) -> Generator[Trouble]:
        """It lasts as long as the block, at the most."""
        self.troubles.append(trouble)
        try:
            if trouble.refuses:
                trouble.touched += self.cut(trouble.client)
            yield trouble
        finally:
            self.troubles.remove(trouble)
            trouble.over.set()

    def _of(self, client: str) -> list[_Connection]:
        return [c for c in self._open if client in ("", c.client)]

    # -- relaying

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            # asyncio's stream server logs a handler that is cancelled; a broker may be away.
            with suppress(asyncio.CancelledError, OSError):
                await self._connection(reader, writer)
        finally:
            writer.close()
            self._handlers.discard(task)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_broker = await asyncio.open_connection("127.0.0.1", self.target)
        connection = _Connection(writer, to_broker)
        self._open.add(connection)
        both = [
            asyncio.create_task(_relay(reader, to_broker, lambda frame: self._request(connection, frame))),
            asyncio.create_task(_relay(there, writer, lambda frame: self._answer(connection, frame))),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for relaying in both:
                relaying.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            self._open.discard(connection)
            to_broker.close()

    async def _request(self, connection: _Connection, frame: bytes) -> bool:
        api, _, correlation, length = _HEAD.unpack_from(frame)
        if not connection.client:
            connection.client = frame[_HEAD.size : _HEAD.size + max(0, length)].decode(errors="replace")
        for trouble in self.troubles:
            if trouble.loses(connection.client, api):
                if trouble.side is Side.REQUESTS:
                    trouble.done.set()
                    return False
                connection.awaited[correlation] = trouble
        return await self._endured(connection, Side.REQUESTS)

    async def _answer(self, connection: _Connection, frame: bytes) -> bool:
        trouble = connection.awaited.pop(_SIZE.unpack_from(frame)[0], None)
        if trouble is not None:
            trouble.done.set()
            return False
        return await self._endured(connection, Side.ANSWERS)

    async def _endured(self, connection: _Connection, side: Side) -> bool:
        """After what lasts was waited for; False where nothing passes at all."""
        for trouble in list(self.troubles):
            if trouble.meets(connection.client, side):
                trouble.touched += 1
                if trouble.refuses:
                    return False
                await (asyncio.sleep(trouble.delay_s) if trouble.delay_s else trouble.over.wait())
        return True


async def _relay(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, passes: Callable[[bytes], Awaitable[bool]]
) -> None:
    """Frames from one side to the other until one end closes, or one does not pass."""
    with suppress(asyncio.IncompleteReadError, OSError, RuntimeError):
        while True:
            size = await source.readexactly(_SIZE.size)
            frame = await source.readexactly(_SIZE.unpack(size)[0])
            if not await passes(frame):
                return
            target.write(size + frame)
            await target.drain()
