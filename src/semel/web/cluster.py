"""What is asked of every worker: the tables, and what is known of an id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from semel.web.answer import Refusal
from semel.web.budget import Budget
from semel.web.owner import Peers, moving, workers
from semel.web.paths import dedup_path
from semel.web.view import NotOwned, Restoring, TableInfo, WorkerView

T = TypeVar("T")

COUNT_CHUNK = 2_000  # rows counted at once: a millisecond or two
COUNT_MAX = 10_000  # of a partition; more are not counted,
COUNT_TABLE_MAX = 100_000  # nor of a table on one worker: a fifth of a second
COUNT_AGAIN_S = 60.0  # and not again for so long where they were too many


class Held(msgspec.Struct):
    """What one worker holds of a table. `rows`: None where they are too many to count, or being restored."""

    table: str
    pipeline: str
    partitions: int
    rows: int | None
    merged: bool = False


class First(msgspec.Struct):
    topic: str
    partition: int
    offset: int
    time: int


class Mark(msgspec.Struct):
    """`id`: as which type the id of the URL is known, as JSON."""

    verdict: str
    first: First
    outcome: str
    expires: int
    revision: int = 0
    id: Any = None


class Marks(msgspec.Struct):
    marks: list[Mark]


class Tables(NamedTuple):
    """`rows` is None where a worker does not know or did not answer; those that did not are `unreachable`.

    A table with `merge=` in several partitions is `partial`: a key that is in several of them counts in each, since
    nobody knows the merged rows without reading them all.
    """

    tables: list[dict[str, Any]]
    unreachable: list[str]


class Overview:
    """Answers of all workers put together."""

    def __init__(self, view: WorkerView, peers: Peers, budget: Budget) -> None:
        self._view = view
        self._peers = peers
        self._budget = budget
        self._uncounted: dict[str, float] = {}

    async def held_tables(self) -> list[Held]:
        """The tables with what this worker holds of them: partial rows where they are `merged`."""
        return [
            Held(info.table, info.pipeline, info.partitions, await self._count(info), info.merged)
            for info in self._view.tables()
        ]

    async def _count(self, info: TableInfo) -> int | None:
        total = 0
        if time.monotonic() < self._uncounted.get(info.table, 0.0):
            return None
        for partition in self._view.held():
            rows, after = 0, None
            while True:
                try:
                    counted, after = await self._budget.run(self._view.count, info.table, partition, after, COUNT_CHUNK)
                except (Restoring, NotOwned):
                    return None
                rows += counted
                if rows > COUNT_MAX or total + rows > COUNT_TABLE_MAX:
                    self._uncounted[info.table] = time.monotonic() + COUNT_AGAIN_S
                    return None
                if after is None:
                    break
            total += rows
        return total

    async def tables(self) -> Tables:
        """Every table with its partitions and rows over all workers. An answer is better than none: a worker that
        does not reply leaves `rows` unknown."""
        others = [url for url in workers(self._view) if url is not None]
        answers = await self._gather(others, "/tables", list[Held])
        unreachable = [url for url, answer in zip(others, answers, strict=True) if isinstance(answer, Exception)]
        by_name = {info.table: info for info in await self.held_tables()}
        for answer in answers:
            for theirs in [] if isinstance(answer, Exception) else answer:
                mine = by_name.get(theirs.table)
                if mine is None:  # of another version of the application
                    continue
                mine.partitions += theirs.partitions
                mine.rows = None if mine.rows is None or theirs.rows is None else mine.rows + theirs.rows
        return Tables([self._shown(by_name[name], known=not unreachable) for name in sorted(by_name)], unreachable)

    def _shown(self, info: Held, *, known: bool) -> dict[str, Any]:
        return {
            "table": info.table,
            "pipeline": info.pipeline,
            "partitions": info.partitions,
            "rows": info.rows if known else None,
            **({"partial": True} if info.merged and info.partitions != 1 else {}),
        }

    async def dedup(self, pipeline: str, written: Sequence[str]) -> dict[str, Any]:
        """What is known of an id: the earliest mark, others of the same id in `others`.

        Refusal 404 where no worker knows it, or there is no such pipeline; where one cannot say, its refusal or
        Restoring instead, since "unknown" would then be a guess.
        """
        failures: list[Exception] = []
        try:
            marks = await self.held_marks(pipeline, written)
        except (Restoring, NotOwned) as not_now:
            failures.append(not_now)
            marks = []
        others = [url for url in workers(self._view) if url is not None]
        for answer in await self._gather(others, dedup_path(pipeline, written), Marks):
            if isinstance(answer, Exception):
                failures.append(answer)
            else:
                marks += answer.marks
        if marks:
            first, *later = (msgspec.to_builtins(mark) for mark in sorted(marks, key=_age))
            return first | ({"others": later} if later else {})
        for failure in failures:
            raise moving() if isinstance(failure, NotOwned) else failure
        raise Refusal(
            404, f"pipeline {pipeline!r} knows nothing of this id", pipeline=pipeline, id="/".join(written)[:1000]
        )

    async def held_marks(self, pipeline: str, written: Sequence[str]) -> list[Mark]:
        """Refusal 404 where the pipeline has none, or is none; Restoring, NotOwned."""
        try:
            marks = await self._budget.run(self._view.dedup, pipeline, written)
        except KeyError as unknown:
            raise Refusal(404, str(unknown.args[0]), pipeline=pipeline) from None
        return msgspec.convert(marks, list[Mark])

    async def _gather(self, urls: Sequence[str], path: str, shape: type[T]) -> list[T | Exception]:
        """An answer, or the exception, of each."""
        asked = (self._peers.get(url, path, shape) for url in urls)
        answers: list[T | Exception] = []
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, Refusal | Restoring | NotOwned):
                    raise answer
                answers.append(answer)
            else:
                answers.append(answer)
        return answers


def _age(mark: Mark) -> tuple[int, str, int, int]:
    return mark.first.time, mark.first.topic, mark.first.partition, mark.first.offset
