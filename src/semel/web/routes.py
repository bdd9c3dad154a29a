"""The URLs: what each reads from its request, and what it answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler

from semel.errors import DecodeError
from semel.web import html
from semel.web.answer import HEADERS, Refusal, dumps, respond, restoring
from semel.web.auth import CHALLENGE, Guard
from semel.web.cluster import Overview
from semel.web.owner import HOP
from semel.web.paths import query, table_path, unquote_key
from semel.web.rows import Rows
from semel.web.scan import LIMIT_DEFAULT, LIMIT_MAX, PageToken, Scan
from semel.web.view import NotOwned, Restoring, WorkerView

log = logging.getLogger("semel.web")

PARTITIONS_MAX = 100_000  # a list longer than that is no list of partitions


class Routes:
    def __init__(self, view: WorkerView, rows: Rows, overview: Overview, guard: Guard) -> None:
        self._view = view
        self._guard = guard
        self._rows = rows
        self._overview = overview

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/", self.index)
        router.add_get("/tables", self.tables)
        router.add_get("/tables/{table}", self.table)
        router.add_get("/tables/{table}/{key:(?s:.*)}", self.row)
        router.add_get("/pipelines", self.pipelines)
        router.add_get("/dedup/{pipeline}/{id:(?s:.*)}", self.dedup)
        router.add_get("/livez", self.livez)
        router.add_get("/readyz", self.readyz)
        router.add_get("/metrics", self.metrics)

    async def index(self, request: web.Request) -> web.Response:
        view = self._view
        document = {
            "app": view.app_id,
            "instance": view.instance,
            "views": ["/tables", "/pipelines", "/livez", "/readyz", "/metrics"],
        }
        return respond(
            request, document, lambda: html.index(view.app_id, view.instance, view.pipelines(), view.owners())
        )

    async def tables(self, request: web.Request) -> web.Response:
        _parameters(request, frozenset())
        if _is_hop(request):
            return _wire(self._overview.held_tables())
        found = await self._overview.tables(_authorization(request))
        headers = {"X-Semel-Unreachable": ",".join(found.unreachable)} if found.unreachable else {}
        return respond(request, found.tables, lambda: html.tables(found.tables), headers=headers)

    async def table(self, request: web.Request) -> web.Response:
        table = _segments(request)[1]
        parameters = _parameters(request, {"prefix", "from", "to", "limit", "page"})
        scan = Scan(
            table,
            prefix=parameters.values.get("prefix"),
            start=parameters.values.get("from"),
            end=parameters.values.get("to"),
            limit=_limit(parameters.values.get("limit"), LIMIT_MAX + 1 if parameters.partitions else LIMIT_MAX),
            page=_page(parameters.values.get("page")),
        )
        if parameters.partitions is not None:
            return _wire(self._rows.held_slices(scan, parameters.partitions))
        found = await self._rows.page(scan, _authorization(request))
        next_page = None
        if found["next"] is not None:
            asked = parameters.values | {"page": found["next"]}
            next_page = table_path(table) + query(asked.items())
        return respond(request, found, lambda: html.rows(table, found, next_page, scan.prefix))

    async def row(self, request: web.Request) -> web.Response:
        _, table, key = _segments(request)
        parameters = _parameters(request, frozenset())
        if parameters.partitions is not None:
            return _wire(self._rows.held_rows(table, key, parameters.partitions))
        found = await self._rows.one(table, key, _authorization(request))
        return respond(request, found, lambda: html.document(f"{table} / {key}", found))

    async def pipelines(self, request: web.Request) -> web.Response:
        found = self._view.pipelines()
        return respond(request, found, lambda: html.pipelines(found))

    async def dedup(self, request: web.Request) -> web.Response:
        _, pipeline, event_id = _segments(request)
        _parameters(request, frozenset())
        if _is_hop(request):
            return _wire({"mark": self._view.dedup(pipeline, event_id)})
        found = await self._overview.dedup(pipeline, event_id, _authorization(request))
        return respond(request, found, lambda: html.document(f"{pipeline} / {event_id}", found))

    async def livez(self, request: web.Request) -> web.Response:
        return self._health(request, *self._view.liveness())

    async def readyz(self, request: web.Request) -> web.Response:
        return self._health(request, *self._view.readiness())

    async def metrics(self, request: web.Request) -> web.Response:
        exposition = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._view.metrics(), headers={**HEADERS, **exposition})

    def _health(self, request: web.Request, ok: bool, detail: Mapping[str, Any]) -> web.Response:
        document: dict[str, Any] = {"ok": ok, **(detail if self._guard.admits(request) else {})}
        return respond(request, document, lambda: html.document(request.path, document), status=200 if ok else 503)


@web.middleware
async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every way a request can fail, as one shape; nothing of the inside gets out."""
    try:
        return await handler(request)
    except Refusal as refused:
        refusal = refused
    except Restoring as progress:
        refusal = restoring(progress)
    except NotOwned:
        refusal = Refusal(421, "this worker does not hold the partition", retry_after_s=1)
    except DecodeError as wrong:
        refusal = Refusal(400, str(wrong))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        refusal = Refusal(error.status, error.reason)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        refusal = Refusal(500, "the worker failed to answer; its log says why")
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = CHALLENGE
    body = refusal.body()
    return respond(request, body, lambda: html.refusal(refusal.status, body), status=refusal.status, headers=headers)


# -- reading a request


class Parameters(NamedTuple):
    """`partitions`: what another worker asks of this one; None for a request from outside."""

    values: dict[str, str]
    partitions: list[int] | None


def _parameters(request: web.Request, known: frozenset[str] | set[str]) -> Parameters:
    values: dict[str, str] = {}
    allowed = known | {"partitions"} if _is_hop(request) else known
    for name, value in request.query.items():
        if name not in allowed:
            expected = f"; known are {', '.join(sorted(known))}" if known else ""
            raise Refusal(400, f"unknown parameter {name!r}{expected}")
        if name in values:
            raise Refusal(400, f"parameter {name!r} is given twice")
        values[name] = value
    held = values.pop("partitions", None)
    return Parameters(values, None if held is None else _partitions(held))


def _partitions(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) > PARTITIONS_MAX or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise Refusal(400, "partitions must be numbers with commas between")
    return [int(part) for part in parts]


def _limit(text: str | None, most: int) -> int:
    if text is None:
        return LIMIT_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise Refusal(400, f"limit must be a number from 1 to {LIMIT_MAX}")
    return int(text)


def _page(text: str | None) -> PageToken | None:
    try:
        return None if text is None else PageToken.decode(text)
    except ValueError as malformed:
        raise Refusal(400, f"page: {malformed}") from malformed


def _segments(request: web.Request) -> list[str]:
    """The path's view, name and key, decoded here: the framework's decoding cannot tell %2F from a slash."""
    raw = request.rel_url.raw_path.split("/", 3)[1:]
    try:
        return [unquote_key(segment) for segment in raw]
    except UnicodeDecodeError as malformed:
        raise Refusal(400, "the path is not percent-encoded UTF-8") from malformed


def _is_hop(request: web.Request) -> bool:
    return HOP in request.headers


def _authorization(request: web.Request) -> str | None:
    return request.headers.get("Authorization")


def _wire(document: Any) -> web.Response:
    return web.Response(body=dumps(document), content_type="application/json", headers=HEADERS)
