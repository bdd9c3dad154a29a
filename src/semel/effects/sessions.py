"""PostgreSQL as a store of effects elsewhere: a row under the key, and an advisory lock for as long as somebody is at it.

The lock is the connection's. A process that ends, however, has none an instant later, and no clock is asked for how long a claim
may last. A connection that breaks loses it while the effect goes on: then the row still says whose it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from semel.effects import statements
from semel.effects.decisions import StoredClaim
from semel.effects.effect import Effect, Outcome
from semel.effects.pool import PAUSE_S
from semel.effects.postgres import Connections, asked, asked_async, until
from semel.effects.statements import UNLOCK, Asking, Statements

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection


class _Asked:
    def __init__(self, connections: Connections, sql: Statements, effect: Effect, owner: str) -> None:
        self._connections = connections
        self._sql = sql
        self._effect = effect
        self._owner = owner

    def _claim(self) -> Asking:
        return statements.claim_locked(self._sql, self._effect, self._owner)

    def _take_over(self, seen: str) -> Asking:
        return statements.take_over(self._sql, self._effect, seen, self._owner)

    def _keep(self, outcome: Outcome) -> Asking:
        return statements.keep(self._sql, self._effect, self._owner, outcome)

    def _release(self) -> Asking:
        return statements.release(self._sql, self._effect, self._owner)


class Session(_Asked):
    """`with` holds its connection. Each question is asked again over another connection where the first one was lost: all of them
    know an answer of their own again."""

    _stack: ExitStack
    _connection: Connection[Any] | None = None

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        connection = self._connection
        with self._stack:
            if connection is not None and not connection.closed:
                try:
                    connection.execute(UNLOCK.text.encode())
                except BaseException as failed:
                    # The pool is to lend no connection that has a lock.
                    connection.close()
                    if not isinstance(failed, Exception):
                        raise

    def claim(self) -> StoredClaim | None:
        return self._ask(self._claim)

    def take_over(self, seen: str) -> bool:
        return self._ask(lambda: self._take_over(seen))

    def keep(self, outcome: Outcome) -> bool:
        return self._ask(lambda: self._keep(outcome))

    def release(self) -> None:
        # What stays claimed is unsure, which is the worse of the two, and no lie.
        with suppress(Exception):
            self._ask(self._release)

    def _ask(self, question: Callable[[], Asking]) -> Any:
        in_time = until(self._connections.timeout_s)
        while True:
            if self._connection is None:
                self._connection = self._stack.enter_context(self._connections.lent())
            try:
                return asked(self._connection, question())
            except Exception as error:
                if not self._connections.lost(self._connection, error) or not in_time():
                    told = self._connections.told(error, str(self._effect.key))
                    raise told from (None if told is error else error)
                self._connection = None
                self._stack.close()
                time.sleep(PAUSE_S)


class AsyncSession(_Asked):
    """As `Session`."""

    _stack: AsyncExitStack
    _connection: AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        connection = self._connection
        async with self._stack:
            if connection is not None and not connection.closed:
                try:
                    await connection.execute(UNLOCK.text.encode())
                except BaseException as failed:
                    await connection.close()
                    if not isinstance(failed, Exception):
                        raise

    async def claim(self) -> StoredClaim | None:
        try:
            return await self._ask(self._claim)
        except asyncio.CancelledError:
            # Nothing has begun. A claim that stayed would be unsure, for nothing.
            if self._connection is not None:
                await self.release()
            raise

    async def take_over(self, seen: str) -> bool:
        return await self._ask(lambda: self._take_over(seen))

    async def keep(self, outcome: Outcome) -> bool:
        return await self._ask(lambda: self._keep(outcome))

    async def release(self) -> None:
        with suppress(Exception):
            await self._ask(self._release)

    async def _ask(self, question: Callable[[], Asking]) -> Any:
        in_time = until(self._connections.timeout_s)
        while True:
            if self._connection is None:
                self._connection = await self._stack.enter_async_context(self._connections.lent_async())
            try:
                return await asked_async(self._connection, question())
            except Exception as error:
                if not self._connections.lost(self._connection, error) or not in_time():
                    told = self._connections.told(error, str(self._effect.key))
                    raise told from (None if told is error else error)
                self._connection = None
                await self._stack.aclose()
                await asyncio.sleep(PAUSE_S)
