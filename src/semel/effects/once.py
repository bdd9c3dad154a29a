"""Once: one effect under its key, in the database of its inbox or elsewhere, with a loop or without."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from semel.effects import elsewhere, statements
from semel.effects.block import Block, NoConnection
from semel.effects.decisions import Done, StoredClaim, Unsure, Verdict, conflict, judge
from semel.effects.effect import Effect, Outcome, outcome, read_outcome
from semel.effects.elsewhere import Plan
from semel.effects.event_key import OncePerAttempt
from semel.effects.pool import PAUSE_S
from semel.effects.postgres import Connections, asked, asked_async, until
from semel.effects.sessions import AsyncSession, Session
from semel.effects.statements import Query, Statements
from semel.errors import EffectError, EffectUnsure, HandlingError

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection


class Once:
    """An effect that is to happen once. One of these is for one use, also where that fails.

    `with` and `async with` give a connection; what is done with it is committed together with the claim of the key, or not at
    all. Where the effect has happened before, the block ends at its first use of the connection. `run` and `run_async` are
    for effects elsewhere.

    `outcome`: what is to be remembered, set in the block (JSON); after it, or before where it was `repeated`, what is remembered.
    `repeated`: it had happened before; None until that is known. `idempotency_key`: the key as a text, for services that take
    one.
    """

    def __init__(
        self, connections: Connections, sql: Statements, effect: Effect, attempt: OncePerAttempt | None = None
    ) -> None:
        self._connections = connections
        self._sql = sql
        self._effect = effect
        self._attempt = attempt
        self._owner = str(uuid.uuid4())
        self._block = Block(f"effect {effect.key}")
        self._used = False
        self._open: ExitStack | AsyncExitStack | None = None
        self._connection: Any = None
        self.outcome: Any = None
        self.repeated: bool | None = None

    @property
    def idempotency_key(self) -> str:
        return self._effect.key.digest.hex()

    def __repr__(self) -> str:
        return f"Once({self._effect.key})"

    # -- in the database of the inbox

    def __enter__(self) -> Connection[Any]:
        self._begin_block()
        try:
            return self._enter()
        except BaseException:
            self._failed()
            raise

    def _enter(self) -> Connection[Any]:
        in_time = until(self._connections.timeout_s)
        while True:
            stack, connection = ExitStack(), None
            try:
                connection = stack.enter_context(self._connections.lent())
                stack.enter_context(connection.transaction())
                first = asked(connection, self._claim())
            except BaseException as error:
                stack.__exit__(type(error), error, error.__traceback__)
                if self._connections.lost(connection, error) and in_time():
                    # Nothing was committed: a server that was restarted, or a connection that had died in the pool.
                    time.sleep(PAUSE_S)
                    continue
                self._raise(error)
            if not first:
                stack.close()
                return self._again()
            self._open, self._connection = stack, connection
            return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._block.end()
        if self.repeated:
            return self._left(error)
        try:
            return self._exit(kind, error, traceback)
        except BaseException:
            self._failed()
            raise

    def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        stack, connection = cast(ExitStack, self._open), self._connection
        self._open = self._connection = None
        if error is not None:
            self._failed()
            return bool(stack.__exit__(kind, error, traceback))
        try:
            kept = self._outcome(connection)
            if kept.raw is not None:
                self._check_ours(asked(connection, statements.set_outcome(self._sql, self._effect, self._owner, kept)))
        except BaseException as failed:
            stack.__exit__(type(failed), failed, failed.__traceback__)
            raise
        try:
            stack.close()
        except BaseException as failed:
            if not self._connections.lost(connection, failed) or not self._committed(failed):
                raise
        self._happened(kept)
        return False

    def _committed(self, lost: BaseException) -> bool:
        """The answer to the COMMIT was lost: whether it took effect. EffectUnsure where nobody can be asked in time."""
        in_time = until(self._connections.timeout_s)
        while True:
            connection = None
            try:
                with self._connections.lent() as connection, connection.transaction(force_rollback=True):
                    return bool(asked(connection, self._look()))
            except BaseException as error:
                if not in_time() or not self._connections.lost(connection, error):
                    raise self._unknown() from lost
                time.sleep(PAUSE_S)

    async def __aenter__(self) -> AsyncConnection[Any]:
        self._begin_block()
        try:
            return await self._enter_async()
        except BaseException:
            self._failed()
            raise

    async def _enter_async(self) -> AsyncConnection[Any]:
        in_time = until(self._connections.timeout_s)
        while True:
            stack, connection = AsyncExitStack(), None
            try:
                connection = await stack.enter_async_context(self._connections.lent_async())
                await stack.enter_async_context(connection.transaction())
                first = await asked_async(connection, self._claim())
            except BaseException as error:
                await stack.__aexit__(type(error), error, error.__traceback__)
                if self._connections.lost(connection, error) and in_time():
                    await asyncio.sleep(PAUSE_S)
                    continue
                self._raise(error)
            if not first:
                await stack.aclose()
                return self._again()
            self._open, self._connection = stack, connection
            return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._block.end()
        if self.repeated:
            return self._left(error)
        try:
            return await self._exit_async(kind, error, traceback)
        except BaseException:
            self._failed()
            raise

    async def _exit_async(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        stack, connection = cast(AsyncExitStack, self._open), self._connection
        self._open = self._connection = None
        if error is not None:
            self._failed()
            return bool(await stack.__aexit__(kind, error, traceback))
        try:
            kept = self._outcome(connection)
            if kept.raw is not None:
                self._check_ours(
                    await asked_async(connection, statements.set_outcome(self._sql, self._effect, self._owner, kept))
                )
        except BaseException as failed:
            await stack.__aexit__(type(failed), failed, failed.__traceback__)
            raise
        try:
            await stack.aclose()
        except BaseException as failed:
            if not self._connections.lost(connection, failed) or not await self._committed_async(failed):
                raise
        self._happened(kept)
        return False

    async def _committed_async(self, lost: BaseException) -> bool:
        in_time = until(self._connections.timeout_s)
        while True:
            connection = None
            try:
                async with self._connections.lent_async() as connection, connection.transaction(force_rollback=True):
                    return bool(await asked_async(connection, self._look()))
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                if not in_time() or not self._connections.lost(connection, error):
                    raise self._unknown() from lost
                await asyncio.sleep(PAUSE_S)

    # -- elsewhere

    def run(
        self,
        effect: Callable[[], Any],
        *,
        unsure: Unsure = "refuse",
        confirm: Callable[[], Any] | None = None,
        not_done: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> Any:
        """Call `effect` where it has not happened, and remember what it returns (JSON); else return what is remembered.

        A process that dies between the effect and the memory of it leaves its key *unsure*. The next call asks `confirm`, which
        returns the outcome of what happened, or `NOT_DONE`; without one `unsure="refuse"` raises EffectUnsure, and `"again"`
        calls the effect again: once where the far end knows `idempotency_key`, maybe twice where it does not. An effect that
        raises leaves its key unsure, too, but for the exceptions of `not_done`, by which it says that nothing has happened.

        EffectConflict: the key stands for another payload. EffectInFlight: another one is at it for too long. EffectUnsure.
        """
        self._begin()
        plan = Plan(self._effect, effect, unsure, confirm, not_done, self._connections.timeout_s)
        try:
            with Session(self._connections, self._sql, self._effect, self._owner) as session:
                return self._ran(elsewhere.run(session, plan))
        except BaseException:
            self._failed()
            raise

    async def run_async(
        self,
        effect: Callable[[], Awaitable[Any]],
        *,
        unsure: Unsure = "refuse",
        confirm: Callable[[], Awaitable[Any]] | None = None,
        not_done: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> Any:
        """As `run`, with functions that are awaited."""
        self._begin()
        plan = Plan(self._effect, effect, unsure, confirm, not_done, self._connections.timeout_s)
        try:
            async with AsyncSession(self._connections, self._sql, self._effect, self._owner) as session:
                return self._ran(await elsewhere.run_async(session, plan))
        except BaseException:
            self._failed()
            raise

    def _ran(self, done: Done) -> Any:
        self.outcome, self.repeated = done.outcome, done.repeated
        return done.outcome

    # -- what all do

    def _begin(self) -> None:
        if self._used:
            # What it has claimed it would take for its own.
            raise EffectError(f"{self!r} was used before; call once() anew for each use")
        if self._attempt is not None:
            self._attempt.begin(self._effect.key)
        self._used = True

    def _begin_block(self) -> None:
        self._begin()
        try:
            self._block.begin()
        except BaseException:
            self._failed()
            raise

    def _failed(self) -> None:
        """The handler may have it tried again, by another one of these."""
        self._block.end()
        if self._attempt is not None:
            self._attempt.failed(self._effect.key)

    def _left(self, error: BaseException | None) -> bool:
        """The block of an effect that had happened has ended. True: as it was to."""
        rest = self._block.rest(error)
        if rest is not None and rest is not error:
            raise rest from None
        return rest is None

    def _claim(self) -> Generator[Query, statements.Rows, bool]:
        """Within the transaction. True: it is ours; False: it has happened."""
        while True:
            stored: StoredClaim | None = yield from statements.claim(self._sql, self._effect, self._owner, done=True)
            if stored is None:
                return True
            match judge(stored, self._effect):
                case Verdict.REMEMBERED:
                    self.outcome = read_outcome(stored.outcome)
                    return False
                case Verdict.ANEW:
                    if (yield from statements.begin_anew(self._sql, self._effect, stored.owner, self._owner)):
                        return True
                case Verdict.CONFLICT:
                    raise conflict(self._effect, stored)
                case Verdict.IN_FLIGHT | Verdict.STRANDED:
                    raise HandlingError(
                        f"effect {self._effect.key} was begun by run(), as one that happens elsewhere, and is not done: it "
                        "cannot be one in the database as well; give it another step="
                    )

    def _look(self) -> Generator[Query, statements.Rows, bool]:
        """Whether our claim is there; where its transaction is not over, this waits for it, as any claim does."""
        stored: StoredClaim | None = yield from statements.claim(self._sql, self._effect, str(uuid.uuid4()), done=True)
        return stored is not None and stored.owner == self._owner

    def _again(self) -> Any:
        self.repeated = True
        return NoConnection(self._block)

    def _outcome(self, connection: Any) -> Outcome:
        """What is to be remembered. EffectError where the block has left nothing that can be committed."""
        kept = outcome(self.outcome)
        if kept.refused:
            raise HandlingError(
                f"effect {self._effect.key} is undone: {kept.refused}. Set what is JSON: an id, a status"
            )
        self._check_ours(self._connections.in_transaction(connection))
        return kept

    def _check_ours(self, holds: bool) -> None:
        if not holds:
            raise EffectError(
                f"effect {self._effect.key}: its block has ended its transaction, by a COMMIT or ROLLBACK of its own or a "
                "statement that failed and whose error was swallowed, so that it cannot commit with its claim; leave commits "
                "out, and put what may fail into connection.transaction()"
            )

    def _happened(self, kept: Outcome) -> None:
        self.repeated = False
        self.outcome = kept.value

    def _raise(self, error: BaseException) -> NoReturn:
        told = self._connections.told(error, str(self._effect.key))
        if told is error:
            raise error
        raise told from error

    def _unknown(self) -> EffectUnsure:
        return EffectUnsure(
            f"effect {self._effect.key} was being committed when the connection to {self._connections.where} was lost, and "
            f"nobody could be asked about it for {self._connections.timeout_s:g} s; call it again with the same key: it "
            "happens, or its outcome is returned"
        )
