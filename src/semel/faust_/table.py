"""Faust's Table over the engine's rows. A row lives where its event is, as in Faust."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false, reportMissingTypeStubs=false
# pyright: reportMissingTypeArgument=false, reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faust
from faust.tables.manager import TableManager as FaustTableManager
from faust.tables.table import Table as FaustTable

from semel.errors import DeclarationError, OutsideEvent, StateNotReady
from semel.faust_.arguments import TABLE, check
from semel.faust_.codec import kind_of_key, table_key_codec, value_codec
from semel.faust_.settings import not_in_memory
from semel.functions import check_gives_value
from semel.plan import TablePlan
from semel.state.event_context import current_context
from semel.state.store import StoreError
from semel.state.table_rows import MISSING
from semel.state.task import TaskState
from semel.table import RESERVED


class Table(FaustTable):
    """Written inside events only. Read anywhere: inside an event what it sees, outside what is committed on this worker."""

    def __init__(self, app: Any, *, name: str | None = None, store: Any = None, **given: Any) -> None:
        not_in_memory(f"table {name!r}: ", store)
        check(TABLE, f"table {name!r}", given)
        if name in RESERVED:
            raise DeclarationError(f"table name {name!r} is reserved ({', '.join(sorted(RESERVED))}); choose another")
        check_gives_value(given.get("default"), f"table {name!r}: default")
        self.said_partitions: int | None = given.get("partitions")
        super().__init__(app, name=name, store=None, **given)

    def plan(self) -> TablePlan:
        app: Any = self.app
        key = table_key_codec(app, self.key_type, self.key_serializer)
        value = value_codec(app, self.value_type, self.value_serializer)
        shape = {"key": key.name, "value": value.name, "merge": False}
        structure = {"key": None, "value": value.structure, "version": 1}
        return TablePlan(self.name, key, value, keyed=False, shape=shape, structure=structure, kind_of=kind_of_key)

    def tumbling(self, *args: Any, **kwargs: Any) -> Any:
        raise DeclarationError(f"table {self.name!r}: {TABLE['window'].message}")

    hopping = using_window = tumbling

    # -- as a dict

    def __getitem__(self, key: Any) -> Any:
        value = self._read(key, self.default)
        if value is MISSING:
            if self.default is None:
                raise KeyError(key)
            return self.default()
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        """As Faust's: a table that has a default of its own gives that."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: Any) -> bool:
        return self._read(key, None) is not MISSING

    def __setitem__(self, key: Any, value: Any) -> None:
        context = self._context("written")
        context.writes.write(context.rows(self.name), key, value)

    def __delitem__(self, key: Any) -> None:
        context = self._context("written")
        rows = context.rows(self.name)
        if not context.has(rows, key):
            raise KeyError(key)
        context.writes.write(rows, key, MISSING)

    def pop(self, key: Any, *default: Any) -> Any:
        """As `get`."""
        there = key in self
        try:
            value = self[key]
        except KeyError:
            if default:
                return default[0]
            raise
        if there:
            del self[key]
        return value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As `get`."""
        try:
            return self[key]
        except KeyError:
            self[key] = default
            return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def clear(self) -> None:
        raise DeclarationError(f"table {self.name!r}: clear() is not possible within one event; delete rows by key")

    def keys(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (key for key, _ in self.items())

    def values(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (value for _, value in self.items())

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

    def __len__(self) -> int:
        return sum(1 for _ in self.items())

    def items(self) -> Iterator[tuple[Any, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What is committed on this worker, in key order within each partition. Within an event: of partitions that run."""
        context = current_context.get()
        if context is None or not context.mine:
            self._refuse_part()
        return self._items()

    def _items(self) -> Iterator[tuple[Any, Any]]:
        context = current_context.get()
        try:
            for rows in self._local():
                for raw, value in rows.scan():
                    yield rows.key_of(raw), rows.decode(value)
        except StoreError as exc:
            if context is not None:
                context.unreadable(exc)
            raise

    # -- where the rows are

    def _context(self, doing: str) -> Any:
        context = current_context.get()
        if context is None or not context.mine:
            raise OutsideEvent(
                f"table {self.name!r} was {doing} where no event is in hand; write tables inside an agent, while it handles "
                "an event, or send an event to a topic"
            )
        return context

    def _read(self, key: Any, default: Any) -> Any:
        context = current_context.get()
        if context is not None and context.mine:
            return context.read(context.rows(self.name), key, default)
        self._refuse_part()
        for rows in self._local():
            raw = rows.committed(rows.raw(key))
            if raw is not None:
                return rows.decode(raw)
        return MISSING

    def _local(self) -> Iterator[Any]:
        """The rows of each partition that runs here. One that is restored is as one that is not here yet."""
        app: Any = self.app
        tasks = app.engine.tasks.values() if app.engine is not None else ()
        return (task.tables[self.name] for task in list(tasks) if task.state is TaskState.RUNNING)

    def _refuse_part(self) -> None:
        """StateNotReady outside an event while rows are on their way here: what is missing would look like a default."""
        app: Any = self.app
        engine = app.engine
        if engine is not None and engine.restored:
            return
        told = [f"{t.restored} of {t.to_restore} records of partition {t.partition}" for t in engine.tasks.values()
                if t.state is not TaskState.RUNNING] if engine is not None else []  # fmt: skip
        raise StateNotReady(
            f"table {self.name!r} is not whole on this worker yet ({', '.join(told) or 'it has no partitions so far'}); ask "
            "again, when GET /readyz says 200"
        )

    # -- the changelog, which is the engine's

    @property
    def changelog_topic_name(self) -> str:
        return self._changelog_topic_name()

    def partition_for_key(self, key: Any) -> int | None:
        """As Faust's, of a table without use_partitioner: a row lives where its event is."""
        return self._context("asked for a row's partition").task.partition

    @property
    def changelog_topic(self) -> Any:
        raise self._engines_own("changelog_topic")

    @changelog_topic.setter
    def changelog_topic(self, topic: Any) -> None:
        raise self._engines_own("changelog_topic")

    def send_changelog(self, *args: Any, **kwargs: Any) -> Any:
        raise self._engines_own("send_changelog()")

    def persisted_offset(self, tp: Any) -> Any:
        raise self._engines_own("persisted_offset()")

    @property
    def data(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise self._engines_own("data")

    def _engines_own(self, what: str) -> DeclarationError:
        return DeclarationError(
            f"table {self.name!r}: {what} is not there on semel: rows and their changelog {self.changelog_topic_name!r} are "
            "written by the engine, with the event's position. Read and write the table as a dict; send what others are to read"
        )

    def reset_state(self) -> None:
        raise DeclarationError(
            f"table {self.name!r}: `faust reset` cannot forget rows that are on Kafka; run `semel reset`, which moves positions "
            "and state together"
        )

    # -- the service: nothing to open, nothing to recover here

    async def on_start(self) -> None:
        return

    async def on_stop(self) -> None:
        return


class TableManager(FaustTableManager):
    """Tables are restored by the engine, task by task; here is only their register."""

    @property
    def changelog_topics(self) -> set[str]:
        return set()

    def add(self, table: Any) -> Any:
        if self._recovery_started.is_set():
            raise RuntimeError("too late to add tables: the worker runs")
        if table.name in self:
            raise ValueError(f"table {table.name!r} is declared twice")
        self[table.name] = table
        return table

    async def on_start(self) -> None:
        self._tables_finalized.set()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        return

    async def wait_until_recovery_completed(self) -> bool:
        """Until the engine has restored its first assignment; True where the app stops instead."""
        app: Any = self.app
        if app.producer_only or app.client_only:
            return False
        return await app.wait_for_stopped(app.restored())


__all__ = ["Table", "TableManager", "faust"]
