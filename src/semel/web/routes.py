"""The URLs: what each reads from its request, and what it answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from semel.display.folding import folded
from semel.errors import DecodeError
from semel.web import html
from semel.web.answer import HEADERS, Refusal, dumps, respond, restoring
from semel.web.auth import CHALLENGE, HOP, Guard
from semel.web.budget import Budget
from semel.web.cluster import Overview
from semel.web.paths import query, table_path
from semel.web.quiet import SAID_CHARACTERS_MAX, Seldom
from semel.web.reading import number, parameters, segments
from semel.web.rows import Rows
from semel.web.scan import LIMIT_DEFAULT, LIMIT_MAX, PageToken, Scan, size_of
from semel.web.trust import NONCE_CHARACTERS, TICKET_PATH
from semel.web.view import NotOwned, Restoring, WorkerView

log = logging.getLogger("semel.web")
_failures = Seldom()

PAGES_MAX = 8  # made at once: each holds 4 MB of rows, several times over


class Routes:
    def __init__(self, view: WorkerView, rows: Rows, overview: Overview, guard: Guard, budget: Budget) -> None:
        self._view = view
        self._guard = guard
        self._rows = rows
        self._overview = overview
        self._budget = budget
        # Parts of another worker's page never wait for a page here, which may wait for parts there.
        self._pages, self._slices = asyncio.Semaphore(PAGES_MAX), asyncio.Semaphore(PAGES_MAX)

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
        router.add_get(TICKET_PATH, self.ticket)

    async def index(self, request: web.Request) -> web.Response:
        view = self._view
        document = {
            "app": view.app_id,
            "instance": view.instance,
            "views": ["/tables", "/pipelines", "/dead-letters", "/livez", "/readyz", "/metrics"],
        }
        pipelines, owners = await self._budget.run(view.pipelines), view.owners()
        return await self._respond(request, document, lambda: html.index(view.app_id, view.instance, pipelines, owners))

    async def tables(self, request: web.Request) -> web.Response:
        parameters(request, frozenset())
        if _is_hop(request):
            return await self._wire(msgspec.to_builtins(await self._overview.held_tables()))
        tables = await self._overview.tables()
        headers = {"X-Semel-Unreachable": ",".join(tables.unreachable)} if tables.unreachable else {}
        return await self._respond(request, tables.tables, lambda: html.tables(tables.tables), headers=headers)

    async def table(self, request: web.Request) -> web.Response:
        table = segments(request)[1]
        parameters = self._hop_parameters(request, {"prefix", "from", "to", "limit", "page"})
        scan = Scan(
            table,
            prefix=parameters.values.get("prefix"),
            start=parameters.values.get("from"),
            end=parameters.values.get("to"),
            limit=_limit(parameters.values.get("limit"), LIMIT_MAX + 1 if parameters.partitions else LIMIT_MAX),
            page=_page(parameters.values.get("page")),
        )
        if parameters.partitions is not None:
            async with self._slices:
                return await self._wire(await self._rows.held_slices(scan, parameters.partitions))
        async with self._pages:
            page = await self._rows.page(scan)
            next_page = None
            if page["next"] is not None:
                asked = parameters.values | {"page": page["next"]}
                next_page = table_path(table) + query(asked.items())
            numeric = self._rows.table(table).numeric
            return await self._respond(request, page, lambda: html.rows(table, page, next_page, scan.prefix, numeric))

    async def row(self, request: web.Request) -> web.Response:
        _, table, key = segments(request)
        parameters = self._hop_parameters(request, frozenset())
        if parameters.partitions is not None:
            return await self._wire(await self._rows.held_rows(table, key, parameters.partitions))
        row = await self._rows.one(table, key)
        return await self._respond(request, row, lambda: html.document(f"{table} / {key}", row))

    async def pipelines(self, request: web.Request) -> web.Response:
        pipelines = await self._budget.run(self._view.pipelines)
        return await self._respond(request, pipelines, lambda: html.pipelines(pipelines))

    async def dedup(self, request: web.Request) -> web.Response:
        _, pipeline, *written = segments(request, None)
        parameters(request, frozenset())
        if _is_hop(request):
            marks = await self._overview.held_marks(pipeline, written)
            return await self._wire({"marks": msgspec.to_builtins(marks)})
        mark = await self._overview.dedup(pipeline, written)
        return await self._respond(request, mark, lambda: html.document(f"{pipeline} / {'/'.join(written)}", mark))

    async def livez(self, request: web.Request) -> web.Response:
        return await self._health(request, *self._view.liveness())

    async def readyz(self, request: web.Request) -> web.Response:
        return await self._health(request, *self._view.readiness())

    async def metrics(self, request: web.Request) -> web.Response:
        exposition = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        body = await self._budget.run(self._view.metrics)
        return web.Response(body=body, headers={**HEADERS, **exposition})

    async def ticket(self, request: web.Request) -> web.Response:
        return await self._wire({"ticket": self._guard.tickets.give()})

    # -- inside

    async def _health(self, request: web.Request, ok: bool, detail: Mapping[str, Any]) -> web.Response:
        document: dict[str, Any] = {"ok": ok, **(detail if self._guard.admits(request) else {})}
        return respond(request, document, lambda: html.document(request.path, document), status=200 if ok else 503)

    async def _respond(
        self, request: web.Request, document: Any, page: Callable[[], str], headers: Mapping[str, str] | None = None
    ) -> web.Response:
        return await self._budget.make(lambda: respond(request, document, page, headers=headers), size_of(document))

    async def _wire(self, document: Any) -> web.Response:
        body = await self._budget.make(lambda: dumps(document), size_of(document))
        return web.Response(body=body, content_type="application/json", headers=HEADERS)

    def _hop_parameters(self, request: web.Request, known: frozenset[str] | set[str]) -> Parameters:
        """With the partitions that another worker asks for, each once."""
        values = parameters(request, known | {"partitions"} if _is_hop(request) else known)
        text = values.pop("partitions", None)
        if text is None:
            return Parameters(values, None)
        parts = text.split(",")
        if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            raise Refusal(400, "partitions must be numbers with commas between")
        asked = list(map(int, parts))
        if len(set(asked)) < len(asked):
            raise Refusal(400, "partitions must be named once each")
        return Parameters(values, asked)


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
    except Exception as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        due, kept_back = _failures.due((type(error), last and last.tb_frame.f_code, last and last.tb_lineno))
        if due:
            more = f" ({kept_back} more like it since)" if kept_back else ""
            log.exception("%s %s failed%s", request.method, folded(request.raw_path, SAID_CHARACTERS_MAX), more)
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


def _limit(text: str | None, most: int) -> int:
    return number("limit", text, LIMIT_DEFAULT, most)


def _page(text: str | None) -> PageToken | None:
    try:
        return None if text is None else PageToken.decode(text)
    except ValueError as malformed:
        raise Refusal(400, f"page: {malformed}") from malformed


def _is_hop(request: web.Request) -> bool:
    """Whether a worker asks. Refusal 503 to one that reads the answers otherwise: an earlier version sent no nonce."""
    nonce = request.headers.get(HOP)
    if nonce is not None and len(nonce) != NONCE_CHARACTERS:
        raise Refusal(503, "who asks is a worker of another version of semel; run one version", retry_after_s=1)
    return nonce is not None
