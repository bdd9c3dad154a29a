"""What is asked of every worker: the tables, and what is known of an id."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from semel.web.answer import Refusal
from semel.web.owner import Peers, moving, workers
from semel.web.paths import dedup_path
from semel.web.view import NotOwned, Restoring, WorkerView


class Tables(NamedTuple):
    """`rows` is None where a worker does not know or did not answer; those that did not are `unreachable`.

    A table with `merge=` in several partitions is `partial`: a key that is in several of them counts in each, since
    nobody knows the merged rows without reading them all.
    """

    tables: list[dict[str, Any]]
    unreachable: list[str]


class Overview:
    """Answers of all workers put together. `authorization` is passed on to them."""

    def __init__(self, view: WorkerView, peers: Peers) -> None:
        self._view = view
        self._peers = peers

    def held_tables(self) -> list[dict[str, Any]]:
        """The tables with what this worker holds of them: partial rows where they are `merged`."""
        return [
            {
                "table": info.table,
                "pipeline": info.pipeline,
                "partitions": info.partitions,
                "rows": info.rows if info.rows >= 0 else None,
                **({"merged": True} if info.merged else {}),
            }
            for info in self._view.tables()
        ]

    async def tables(self, authorization: str | None) -> Tables:
        """Every table with its partitions and rows over all workers. An answer is better than none: a worker that
        does not reply leaves `rows` unknown."""
        others = [url for url in workers(self._view) if url is not None]
        answers = await self._gather(others, "/tables", authorization)
        unreachable = [url for url, answer in zip(others, answers, strict=True) if isinstance(answer, Exception)]
        found = {info["table"]: info for info in self.held_tables()}
        for answer in answers:
            held: list[dict[str, Any]] = [] if isinstance(answer, Exception) else answer
            for theirs in held:
                mine = found.setdefault(theirs["table"], {**theirs, "partitions": 0, "rows": 0})
                mine["partitions"] += theirs["partitions"]
                known: list[int | None] = [mine["rows"], theirs["rows"]]
                mine["rows"] = None if None in known else sum(count or 0 for count in known)
        if unreachable:
            for info in found.values():
                info["rows"] = None
        for info in found.values():
            if info.pop("merged", False) and info["partitions"] != 1:
                info["partial"] = True
        return Tables([found[name] for name in sorted(found)], unreachable)

    async def dedup(self, pipeline: str, event_id: str, authorization: str | None) -> dict[str, Any]:
        """What is known of an id: the earliest mark, others of the same id in `others`.

        Refusal 404 where no worker knows it; where one cannot say, its refusal or Restoring instead, since
        "unknown" would then be a guess.
        """
        others = [url for url in workers(self._view) if url is not None]
        answers = await self._gather(others, dedup_path(pipeline, event_id), authorization)
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        marks = [answer["mark"] for answer in answers if not isinstance(answer, Exception)]
        try:
            marks.append(self._view.dedup(pipeline, event_id))
        except (Restoring, NotOwned) as not_now:
            failures.append(not_now)
        known = sorted((mark for mark in marks if mark is not None), key=_age)
        if known:
            return known[0] | ({"others": known[1:]} if len(known) > 1 else {})
        for failure in failures:
            raise moving() if isinstance(failure, NotOwned) else failure
        raise Refusal(404, f"pipeline {pipeline!r} knows nothing of this id", pipeline=pipeline, id=event_id)

    async def _gather(self, urls: Sequence[str], path: str, authorization: str | None) -> list[Any]:
        """An answer, or the exception, of each."""
        asked = (self._peers.get(url, path, authorization) for url in urls)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Refusal | Restoring | NotOwned):
                raise answer
        return list(answers)


def _age(mark: dict[str, Any]) -> tuple[str, str, int, int]:
    first: dict[str, Any] = mark.get("first") or {}
    return (
        str(first.get("time", "")),
        str(first.get("topic", "")),
        int(first.get("partition", 0)),
        int(first.get("offset", 0)),
    )
