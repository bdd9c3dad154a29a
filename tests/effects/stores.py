"""The stores that are held to the same suite. A store is named by a text, so that another process can open it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from semel.effects.effect import Effect, Outcome
from semel.effects.elsewhere import Session
from semel.effects.postgres import Connections
from semel.effects.sessions import AsyncSession
from semel.effects.sessions import Session as PostgresSession
from semel.effects.statements import statements
from tests.effects.folder_store import FolderSession

T = TypeVar("T")
KINDS = ["postgres", "postgres-async", "folder"]


class _OnALoop:
    """An async session, asked without a loop."""

    def __init__(self, session: AsyncSession, runner: asyncio.Runner) -> None:
        self._session, self._runner = session, runner

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def claim(self) -> Any:
        return self._run(self._session.claim())

    def take_over(self, seen: str) -> bool:
        return self._run(self._session.take_over(seen))

    def keep(self, outcome: Outcome) -> bool:
        return self._run(self._session.keep(outcome))

    def release(self) -> None:
        self._run(self._session.release())


@contextmanager
def session(store: str, effect: Effect, *, timeout_s: float = 10.0) -> Iterator[Session]:
    """`store`: kind and place, as `folder=/tmp/x`."""
    kind, _, place = store.partition("=")
    owner = str(uuid.uuid4())
    if kind == "folder":
        with FolderSession(Path(place), effect, owner) as opened:
            yield opened
        return
    connections = Connections(place, "semel", pool_size=2, timeout_s=timeout_s, idle_s=60.0, isolation="read committed")
    sql = statements("semel")
    if kind == "postgres":
        try:
            with PostgresSession(connections, sql, effect, owner) as opened:
                yield opened
        finally:
            connections.close()
        return
    with asyncio.Runner() as runner:
        opened_async = AsyncSession(connections, sql, effect, owner)
        runner.run(opened_async.__aenter__())
        try:
            yield _OnALoop(opened_async, runner)
        finally:
            runner.run(opened_async.__aexit__(None, None, None))
            runner.run(connections.close_async())
