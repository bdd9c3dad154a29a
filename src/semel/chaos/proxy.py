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


class Lose(Enum):
    REQUEST = "the broker never sees the request"
    ANSWER = "the broker acts, and nobody hears of it"


class Side(Enum):
    REQUESTS = "towards the broker"
    ANSWERS = "towards the worker"


@dataclass(eq=False)
class Rule:
    """The `nth` request of an api from now on is lost, and its connection cut. `client`: of this one only."""

    api: Api
    lose: Lose
    nth: int
    client: str = ""
    seen: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def applies(self, api: int, client: str) -> bool:
        if api != self.api or self.client not in ("", client):
            return False
        self.seen += 1
        return self.seen == self.nth


@dataclass(eq=False)
class Trouble:
    """What lasts for a while. `touched` counts the frames and connections it has met.

    Silent frames are held, not lost: when it is over they arrive, as packets do that were on their way.
    """

    client: str = ""
    silent: Side | None = None
    delay_s: float = 0.0
    refuses: bool = False
    touched: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def meets(self, client: str, side: Side) -> bool:
        return self.client in ("", client) and self.silent in (None, side) and not self.over.is_set()


@dataclass(eq=False)
class _Connection:
    """`client`: that of its first request; `awaited`: of which requests the answer is to be lost, by correlation id."""

    to_worker: asyncio.StreamWriter
    to_broker: asyncio.StreamWriter
    client: str = ""
    awaited: dict[int, Rule] = field(default_factory=dict[int, Rule])


class Proxy:
    """Listens on `port` for the broker on `target`, both of the loopback. `async with` it."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self._rules: list[Rule] = []
        self._troubles: list[Trouble] = []
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

    def lose(self, api: Api, what: Lose, *, nth: int = 1, client: str = "") -> Rule:
        rule = Rule(api, what, nth, client)
        self._rules.append(rule)
        return rule

    def forget(self, rule: Rule) -> None:
        """Nothing is lost by this rule any more."""
        with suppress(ValueError):
            self._rules.remove(rule)

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
        """It lasts as long as the block."""
        self._troubles.append(trouble)
        try:
            if trouble.refuses:
                trouble.touched += self.cut(trouble.client)
            yield trouble
        finally:
            self._troubles.remove(trouble)
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
        for rule in self._rules:
            if rule.applies(api, connection.client):
                if rule.lose is Lose.REQUEST:
                    rule.done.set()
                    return False
                connection.awaited[correlation] = rule
        return await self._endured(connection, Side.REQUESTS)

    async def _answer(self, connection: _Connection, frame: bytes) -> bool:
        rule = connection.awaited.pop(_SIZE.unpack_from(frame)[0], None)
        if rule is not None:
            rule.done.set()
            return False
        return await self._endured(connection, Side.ANSWERS)

    async def _endured(self, connection: _Connection, side: Side) -> bool:
        """After what lasts was waited for; False where nothing passes at all."""
        for trouble in list(self._troubles):
            if not trouble.meets(connection.client, side):
                continue
            trouble.touched += 1
            if trouble.refuses:
                return False
            if trouble.silent is not None:
                await trouble.over.wait()
            elif trouble.delay_s:
                await asyncio.sleep(trouble.delay_s)
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
