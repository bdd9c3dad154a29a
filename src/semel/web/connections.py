"""The connections of readers: how many at once, for how long, and in whose favour.

Descriptors are what the pipeline needs for Kafka and its store, so readers get a part of them. Where all are taken, the one that
asks for nothing longest makes room: half a request, an idle one, an answer that is not read. The kernel keeps those that
are not accepted yet; being accepted costs time (`semel.web.budget`) as well.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import time
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from semel.runtime.forks import keep_from_children
from semel.web.budget import Budget
from semel.web.quiet import Seldom

log = logging.getLogger("semel.web")

CONNECTIONS_MAX = 100  # browsers open six each, workers up to 32
DESCRIPTORS_PART = 8  # of what the process may open: 128 of the usual 1024
CONNECTIONS_MIN = 8
BACKLOG = 128
IDLE_S = 10.0  # for the first request to be there, and between requests
UNREAD_S = 30.0  # for an answer to be read: a page is 4 MB at most
UNREAD_BYTES_MAX = 32 << 20  # written and not read, over all connections: eight pages
SEND_BUFFER_BYTES = 256 << 10  # of each connection in the kernel, which would else take 4 MB
SPARED_S = 5.0  # a request in hand is not closed before, however many wait
SWEEP_S = 1.0
ACCEPT_S = 0.0002  # what accepting takes
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def most_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return max(CONNECTIONS_MIN, min(CONNECTIONS_MAX, soft // DESCRIPTORS_PART))


@dataclass(slots=True)
class _Connection:
    """`since`: when it was accepted, or its last request began or was answered."""

    transport: asyncio.Transport
    since: float
    in_hand: bool = False

    @property
    def closed(self) -> bool:
        return self.transport.get_extra_info("socket").fileno() < 0


class Connections:
    """Accepts for `server` on `sockets` until `close`."""

    def __init__(self, budget: Budget, most: int | None = None) -> None:
        self._budget = budget
        self._most = most_connections() if most is None else most
        self._open: dict[asyncio.BaseTransport, _Connection] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._sockets: list[socket.socket] = []
        self._seldom = Seldom()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def middleware(self) -> Middleware:
        """Knows which requests are in hand."""

        @web.middleware
        async def in_hand(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = self._open.get(request.transport) if request.transport is not None else None
            if connection is None:
                return await handler(request)
            connection.in_hand, connection.since = True, time.monotonic()
            try:
                response = await handler(request)
            finally:
                connection.in_hand, connection.since = False, time.monotonic()
            if isinstance(response, web.Response) and isinstance(response.body, bytes):
                self._make_bytes(len(response.body), connection)
            return response

        return in_hand

    def serve(self, server: web.Server, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._tasks = [asyncio.create_task(self._accept(server, s), name="web accept") for s in sockets]
        self._tasks.append(asyncio.create_task(self._sweep(), name="web sweep"))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    def abort(self) -> None:
        """Close what is open, whether its answer was read or not."""
        for transport in list(self._open):
            _abort(transport)
        self._open.clear()

    async def _accept(self, server: web.Server, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._budget.turn(ACCEPT_S)
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as refused:
                if refused.errno in _NO_DESCRIPTORS:
                    if self._seldom.due(refused.errno)[0]:
                        log.warning("no reader can connect: %s; raise the limit of open files", refused.strerror)
                    await asyncio.sleep(1)
                continue
            if not self._make_room():
                if self._seldom.due("full")[0]:
                    log.warning("%d readers are being answered; others are turned away", self._most)
                accepted.close()
                continue
            try:
                transport, _ = await loop.connect_accepted_socket(server, accepted)
            except OSError:
                accepted.close()
                continue
            assert isinstance(transport, asyncio.Transport)
            self._open[transport] = _Connection(transport, time.monotonic())

    def _make_room(self) -> bool:
        self._forget_closed()
        if len(self._open) < self._most:
            return True
        spare = min(self._open.values(), key=lambda c: (c.in_hand and not c.transport.is_closing(), c.since))
        if spare.in_hand and time.monotonic() - spare.since < SPARED_S:
            return False
        if self._seldom.due("room")[0]:
            log.warning(
                "%d connections of readers are open, the limit; the idlest is closed for each new one", self._most
            )
        _abort(spare.transport)
        del self._open[spare.transport]
        return True

    def _make_bytes(self, wanted: int, of: _Connection) -> None:
        """Give up the oldest answers that are not read where the next one would be too much beside them."""
        unread = {c.transport: c.transport.get_write_buffer_size() for c in self._open.values() if c is not of}
        total = wanted + sum(unread.values())
        for transport in sorted(unread, key=lambda t: self._open[t].since):
            if total <= UNREAD_BYTES_MAX:
                return
            if unread[transport]:
                if self._seldom.due("unread")[0]:
                    log.warning("answers of %d bytes wait to be read; the oldest are given up", total)
                _abort(transport)
                total -= unread[transport]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._forget_closed()
            now = time.monotonic()
            for connection in list(self._open.values()):
                if not connection.in_hand and now - connection.since > UNREAD_S:
                    _abort(connection.transport)

    def _forget_closed(self) -> None:
        for transport in [transport for transport, connection in self._open.items() if connection.closed]:
            del self._open[transport]


def _abort(transport: asyncio.BaseTransport) -> None:
    # close() would wait until what is written is read, which may be never.
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


async def listen(bind: str, port: int) -> list[socket.socket]:
    """Sockets on every address of `bind`, all on one port. OSError where one cannot be had."""
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(bind or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                listening = socket.socket(family, kind, protocol)
            except OSError:  # an address family that this machine does not speak
                continue
            sockets.append(listening)
            keep_from_children(listening)
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            try:
                listening.bind((address[0], chosen, *address[2:]))
            except OSError as refused:
                # "localhost" may name ::1 where only IPv4 is set up.
                if refused.errno != errno.EADDRNOTAVAIL or len(addresses) == 1:
                    raise
                sockets.pop().close()
                continue
            listening.listen(BACKLOG)
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    return sockets
