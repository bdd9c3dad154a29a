"""What goes out: JSON, or a plain page where a person's browser asks, and every refusal in one shape."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from semel.web.view import Restoring

JSON = "application/json"
HTML = "text/html"

HEADERS = {
    "Cache-Control": "no-store",
    "Vary": "Accept",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


TOO_DEEP = "what is stored is nested too deeply to be shown"


class Refusal(Exception):
    """An answer other than the one asked for: status, a sentence, and what a program may want to know."""

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None, **detail: Any) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.detail = detail

    def body(self) -> dict[str, Any]:
        return {"error": self.message, **self.detail}


def restoring(progress: Restoring) -> Refusal:
    """503 with how far the restore is."""
    eta = progress.eta_seconds
    return Refusal(
        503,
        f"partition {progress.partition} is being restored: {progress.done:,} of {progress.total:,} records",
        retry_after_s=1 if eta is None else min(60, max(1, math.ceil(eta))),
        restoring={
            "partition": progress.partition,
            "done": progress.done,
            "total": progress.total,
            "eta_seconds": eta,
        },
    )


def dumps(document: Any) -> bytes:
    try:
        return orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        # Lone surrogates, integers past 64 bits, 254 levels: rare, legal in a table, and no reason to fail.
        try:
            return json.dumps(document, default=str).encode()
        except RecursionError:
            raise Refusal(500, TOO_DEEP) from None


def prefers_html(accept: str) -> bool:
    """Whether an Accept header wants text/html more than JSON; a tie is JSON."""
    weights = {HTML: 0.0, JSON: 0.0}
    ranks = dict.fromkeys(weights, -1)
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = _quality(parameters)
        for kind in weights:
            rank = 2 if media == kind else 1 if media == kind.partition("/")[0] + "/*" else 0 if media == "*/*" else -1
            if rank > ranks[kind]:
                ranks[kind], weights[kind] = rank, quality
    return weights[HTML] > weights[JSON]


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def respond(
    request: web.Request,
    document: Any,
    page: Callable[[], str],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """`document` as JSON, or `page()` where the request prefers HTML."""
    all_headers = {**HEADERS, **(headers or {})}
    if prefers_html(request.headers.get("Accept", "")):
        body = page().encode("utf-8", "replace")
        return web.Response(body=body, status=status, content_type=HTML, charset="utf-8", headers=all_headers)
    return web.Response(body=dumps(document), status=status, content_type=JSON, headers=all_headers)
