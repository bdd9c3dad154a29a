"""A TCP proxy between a worker and its broker that knows one thing about Kafka: which request is which.

It can lose a request before the broker sees it, or the broker's answer to it, and cut that connection: what a network
does at the worst moment.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

_SIZE = struct.Struct(">i")
_HEAD = struct.Struct(">hhi")  # api key, api version, correlation id

PRODUCE = 0
HEARTBEAT = 12
INIT_PRODUCER_ID = 22
ADD_PARTITIONS = 24
ADD_OFFSETS = 25
END_TXN = 26
TXN_OFFSET_COMMIT = 28


class Lose(Enum):
    REQUEST = "the broker never sees the request"
    ANSWER = "the broker acts, and nobody hears of it"


@dataclass
class Rule:
    """The `nth` request of an api from now on is lost, and its connection cut."""

    api: int
    lose: Lose
    nth: int
    seen: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def applies(self) -> bool:
        self.seen += 1
        return self.seen == self.nth


class Proxy:
    """Listens on `port` for the broker on `target`. `async with` it."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.seen: Counter[int] = Counter()
        self._rules: list[Rule] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def lose(self, api: int, what: Lose, *, nth: int = 1) -> Rule:
        rule = Rule(api, what, nth)
        self._rules.append(rule)
        return rule

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            there, to_broker = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        awaited: dict[int, Rule] = {}
        try:
            requests = asyncio.create_task(self._relay(reader, to_broker, lambda frame: self._request(frame, awaited)))
            answers = asyncio.create_task(self._relay(there, writer, lambda frame: self._answer(frame, awaited)))
            with suppress(asyncio.CancelledError):  # asyncio's stream server logs a handler that is cancelled
                await asyncio.wait({requests, answers}, return_when=asyncio.FIRST_COMPLETED)
            requests.cancel()
            answers.cancel()
            await asyncio.gather(requests, answers, return_exceptions=True)
        finally:
            writer.close()
            to_broker.close()
            self._connections.discard(task)

    async def _relay(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, passes: Callable[[bytes], bool]
    ) -> None:
        """Frames from one side to the other until one end closes, or one does not pass."""
        try:
            while True:
                size = await source.readexactly(_SIZE.size)
                frame = await source.readexactly(_SIZE.unpack(size)[0])
                if not passes(frame):
                    return
                target.write(size + frame)
                await target.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def _request(self, frame: bytes, awaited: dict[int, Rule]) -> bool:
        api, _, correlation = _HEAD.unpack_from(frame)
        self.seen[api] += 1
        for rule in self._rules:
            if rule.api == api and rule.applies():
                if rule.lose is Lose.REQUEST:
                    rule.done.set()
                    return False
                awaited[correlation] = rule
        return True

    def _answer(self, frame: bytes, awaited: dict[int, Rule]) -> bool:
        rule = awaited.pop(struct.unpack_from(">i", frame)[0], None)
        if rule is None:
            return True
        rule.done.set()
        return False
