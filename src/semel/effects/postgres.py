"""Connections to PostgreSQL: the only module that knows psycopg. One is made when it is asked for."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from semel.effects import schema as schemas
from semel.effects.pool import AsyncPool, Pool
from semel.effects.statements import Asking, Query, version
from semel.errors import ConfigError, EffectInFlight, ExtraMissing, InboxSchemaError

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

ISOLATIONS = ("read committed", "repeatable read", "serializable")
_IN_TRANSACTION = 2  # libpq's PQTRANS_INTRANS
# What a forked child has of its parent: kept, so that nothing says good-bye to the parent's server.
_inherited: list[Any] = []


def installed(what: str) -> None:
    """ExtraMissing."""
    try:
        import_module("psycopg")
    except ImportError:
        raise ExtraMissing(what, "postgres", "psycopg") from None


class Connections:
    """The pools of one process. Each event loop has one of its own, as has the code outside of loops; a forked child begins anew.

    `timeout_s`: for how long a connection, or the lock of a key, is waited for. `idle_s`: a transaction in which nothing is
    asked for so long is ended by the server, so that a process that hangs keeps no key for ever.
    """

    def __init__(
        self, url: str, schema: str, *, pool_size: int, timeout_s: float, idle_s: float, isolation: str
    ) -> None:
        installed("semel.Inbox")
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        self.schema = schemas.checked_name(schema)
        self.timeout_s = timeout_s
        self._pool_size = pool_size
        self._idle_s = idle_s
        if isolation not in ISOLATIONS:
            raise ConfigError(f"isolation={isolation!r} is none of {', '.join(ISOLATIONS)}")
        self._isolation = isolation
        try:
            told: dict[str, Any] = dict(conninfo_to_dict(url))
        except psycopg.ProgrammingError:
            # The text may hold a password.
            raise ConfigError(
                "the URL of the inbox is none that PostgreSQL's clients know; write postgresql://user@host:port/database, "
                "without '+psycopg' or the like behind the scheme"
            ) from None
        self._url = url
        # A server that takes the connection and says nothing.
        self._limits: dict[str, Any] = (
            {} if told.get("connect_timeout") else {"connect_timeout": max(2, int(timeout_s))}
        )
        where = f"{told.get('host') or told.get('hostaddr') or os.environ.get('PGHOST') or 'the local socket'}"
        self.where = f"{where}:{told.get('port') or os.environ.get('PGPORT') or 5432}"
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._pool: Pool | None = None
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncPool] = WeakKeyDictionary()
        self._fit = False

    def _own_process(self) -> None:
        if self._pid != os.getpid():
            # Sockets of the parent: two processes on one of them would read each other's answers. Nor are they closed here.
            _inherited.append((self._pool, self._pools))
            self._lock = threading.Lock()
            self._forget()

    @property
    def _settings(self) -> Query:
        return Query(
            "SELECT set_config('lock_timeout', %s, false), set_config('idle_in_transaction_session_timeout', %s, false), "
            "set_config('default_transaction_isolation', %s, false)",
            (f"{int(1000 * self.timeout_s)}ms", f"{int(1000 * self._idle_s)}ms", self._isolation),
        )

    # -- without a loop

    def _connect(self) -> Connection[Any]:
        import psycopg

        connection = psycopg.connect(self._url, autocommit=True, **self._limits)
        try:
            connection.execute(self._settings.text.encode(), self._settings.parameters)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def lent(self, *, fit: bool = True) -> Generator[Connection[Any]]:
        """A connection for a while. InboxUnreachable; with `fit` InboxSchemaError."""
        self._own_process()
        with self._lock:
            pool = self._pool = self._pool or Pool(self._connect, self._pool_size, self.timeout_s, self.where)
        with pool.lent() as connection, _as_it_was(connection):
            if fit and not self._fit:
                schemas.check(asked(connection, version(self.schema)), self.schema)
                self._fit = True
            yield connection

    # -- in a loop

    async def _connect_async(self) -> AsyncConnection[Any]:
        import psycopg

        connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True, **self._limits)
        try:
            await connection.execute(self._settings.text.encode(), self._settings.parameters)
        except BaseException:
            await connection.close()
            raise
        return connection

    @asynccontextmanager
    async def lent_async(self) -> AsyncGenerator[AsyncConnection[Any]]:
        """As `lent`."""
        self._own_process()
        loop = asyncio.get_running_loop()
        with self._lock:
            pool = self._pools.get(loop)
            if pool is None:
                pool = AsyncPool(self._connect_async, self._pool_size, self.timeout_s, self.where)
                self._pools[loop] = pool
        async with pool.lent() as connection:
            with _as_it_was(connection):
                if not self._fit:
                    schemas.check(await asked_async(connection, version(self.schema)), self.schema)
                    self._fit = True
                yield connection

    # -- ends

    def close(self) -> None:
        """Those outside of loops that are not in use."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.close_idle()

    async def close_async(self) -> None:
        """As `close`, with those of the running loop."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is not None and self._pid == os.getpid():
            await pool.close_idle()
        self.close()

    # -- errors

    def lost(self, connection: Any, error: BaseException) -> bool:
        """The connection is gone, so that what was asked last has no answer."""
        import psycopg

        return connection is not None and isinstance(error, psycopg.Error) and bool(connection.closed)

    def told(self, error: BaseException, what: str) -> BaseException:
        """An error of a claim, in our words where it has some."""
        import psycopg

        if isinstance(error, psycopg.errors.LockNotAvailable):
            return EffectInFlight(
                f"effect {what} is in a transaction that was not over after {self.timeout_s:g} s; call it again later"
            )
        if isinstance(error, (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)):
            self._fit = False
            return InboxSchemaError(
                f"the tables of the inbox in schema {self.schema} are gone; make them with semel inbox apply"
            )
        return error

    def in_transaction(self, connection: Any) -> bool:
        """It is in a transaction that can be committed."""
        return connection.pgconn.transaction_status == _IN_TRANSACTION


@contextmanager
def _as_it_was(connection: Any) -> Generator[None]:
    """Who has it next is to find no rows as dicts, because the one before liked them so."""
    before = connection.row_factory, connection.cursor_factory
    try:
        yield
    finally:
        connection.row_factory, connection.cursor_factory = before


def asked(connection: Connection[Any], asking: Asking) -> Any:
    """Run statements one by one; what their generator returns."""
    from psycopg import Cursor
    from psycopg.rows import tuple_row

    rows: list[tuple[Any, ...]] | None = None
    while True:
        try:
            query = next(asking) if rows is None else asking.send(rows)
        except StopIteration as end:
            return end.value
        # Whatever a block has made of its connection's own cursors and rows.
        cursor = Cursor(connection, row_factory=tuple_row)
        cursor.execute(query.text.encode(), query.parameters)
        rows = cursor.fetchall() if cursor.description else []


async def asked_async(connection: AsyncConnection[Any], asking: Asking) -> Any:
    """As `asked`."""
    from psycopg import AsyncCursor
    from psycopg.rows import tuple_row

    rows: list[tuple[Any, ...]] | None = None
    while True:
        try:
            query = next(asking) if rows is None else asking.send(rows)
        except StopIteration as end:
            return end.value
        cursor = AsyncCursor(connection, row_factory=tuple_row)
        await cursor.execute(query.text.encode(), query.parameters)
        rows = await cursor.fetchall() if cursor.description else []


def until(seconds: float) -> Callable[[], bool]:
    """Whether there is time left."""
    ends = time.monotonic() + seconds
    return lambda: time.monotonic() < ends
