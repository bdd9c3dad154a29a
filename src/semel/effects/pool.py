"""Pools of connections, without a task or a thread of their own: whoever needs a connection makes one, and leaves it for the
next.

Not psycopg_pool's: its workers swallow a cancellation that meets them at work, so that an event loop that ends with such a
pool open waits for them for ever. What ends here is nothing but a list.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from semel.errors import InboxUnreachable

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

# A server that refuses, as it does while it starts, is asked again after so long.
PAUSE_S = 0.05
IDLE = 0  # libpq's PQTRANS_IDLE


class Pool:
    """Up to `size` connections, for any thread. `connect` makes one; `fit` says whether one may be lent again."""

    def __init__(self, connect: Callable[[], Connection[Any]], size: int, timeout_s: float, where: str) -> None:
        self._connect = connect
        self._size, self._timeout_s, self._where = size, timeout_s, where
        self._free = threading.Semaphore(size)
        self._idle: list[Connection[Any]] = []

    @contextmanager
    def lent(self) -> Generator[Connection[Any]]:
        """A connection for a while. InboxUnreachable where there is none in time."""
        if not self._free.acquire(timeout=self._timeout_s):
            raise used_up(self._where, self._size, self._timeout_s)
        try:
            connection = self._take()
            try:
                yield connection
            finally:
                if fit(connection):
                    self._idle.append(connection)
                else:
                    connection.close()
        finally:
            self._free.release()

    def _take(self) -> Connection[Any]:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        ends = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._connect()
            except Exception as refused:
                if time.monotonic() > ends:
                    raise unreachable(self._where, self._timeout_s, refused) from None
                time.sleep(PAUSE_S)

    def close_idle(self) -> None:
        """Those that nobody has: one was lost, so they may be, too; or it is the end."""
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return


class AsyncPool:
    """As `Pool`, for the tasks of one event loop."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConnection[Any]]], size: int, timeout_s: float, where: str
    ) -> None:
        self._connect = connect
        self._size, self._timeout_s, self._where = size, timeout_s, where
        self._free = asyncio.Semaphore(size)
        self._idle: list[AsyncConnection[Any]] = []

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[AsyncConnection[Any]]:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise used_up(self._where, self._size, self._timeout_s) from None
        try:
            connection = await self._take()
            try:
                yield connection
            finally:
                if fit(connection):
                    self._idle.append(connection)
                else:
                    await connection.close()
        finally:
            self._free.release()

    async def _take(self) -> AsyncConnection[Any]:
        if self._idle:
            return self._idle.pop()
        ends = time.monotonic() + self._timeout_s
        while True:
            try:
                return await self._connect()
            except Exception as refused:
                if time.monotonic() > ends:
                    raise unreachable(self._where, self._timeout_s, refused) from None
                await asyncio.sleep(PAUSE_S)

    async def close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()


def fit(connection: Any) -> bool:
    """Whether the next one may have it: it is there, and in no transaction."""
    return not connection.closed and connection.pgconn.transaction_status == IDLE


def used_up(where: str, size: int, timeout_s: float) -> InboxUnreachable:
    return InboxUnreachable(
        f"no connection to the inbox at {where} within {timeout_s:g} s: all {size} of this process are in use; give Inbox a "
        "larger pool_size, or hold fewer effects open at a time"
    )


def unreachable(where: str, timeout_s: float, refused: Exception) -> InboxUnreachable:
    return InboxUnreachable(
        f"no connection to the inbox at {where} within {timeout_s:g} s: {' '.join(str(refused).split())}"
    )
