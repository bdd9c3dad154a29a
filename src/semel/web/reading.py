"""What a request says: the parts of its path, its parameters, and what a worker or a form sends with it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import orjson
from aiohttp import web

from semel.web.answer import Refusal
from semel.web.paths import unquote_key

ECHO_CHARACTERS_MAX = 200  # of what a request said, in what it is answered
BODY_S = 10.0  # for a body to arrive
VALUE = "value"
FORM = "application/x-www-form-urlencoded"


def parameters(request: web.Request, known: frozenset[str] | set[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            expected = f"; known are {', '.join(sorted(known - {'partitions'}))}" if known else ""
            raise Refusal(400, f"unknown parameter {name[:ECHO_CHARACTERS_MAX]!r}{expected}")
        if name in values:
            raise Refusal(400, f"parameter {name!r} is given twice")
        values[name] = value
    return values


def segments(request: web.Request, splits: int | None = 3) -> list[str]:
    """The path's view, name and key, decoded here: the framework's decoding cannot tell %2F from a slash."""
    raw = request.rel_url.raw_path.split("/", -1 if splits is None else splits)[1:]
    try:
        return [unquote_key(segment) for segment in raw]
    except UnicodeDecodeError as malformed:
        raise Refusal(400, "the path is not percent-encoded UTF-8") from malformed


def number(name: str, text: str | None, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise Refusal(400, f"{name} must be a number from 1 to {most}")
    return int(text)


async def body(request: web.Request) -> tuple[dict[str, Any], bool]:
    """What is posted: a JSON object, or the fields of a form; and whether it is a form. `value` of JSON is its bytes, in which
    each number is as it was written."""
    try:
        async with asyncio.timeout(BODY_S):
            raw = await request.read()
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_S:g} s") from None
    if request.content_type == FORM:
        return {name: str(value) for name, value in (await request.post()).items()}, True
    try:
        document = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as malformed:
        raise Refusal(400, f"the body is no JSON: {malformed}"[:ECHO_CHARACTERS_MAX]) from None
    if not isinstance(document, dict):
        raise Refusal(400, "the body must be a JSON object")
    fields = cast("dict[str, Any]", document)
    if VALUE in fields:
        try:
            fields[VALUE] = bytes(msgspec.json.decode(raw, type=dict[str, msgspec.Raw])[VALUE])
        except (msgspec.MsgspecError, UnicodeDecodeError) as malformed:
            raise Refusal(400, f"the body is no JSON: {malformed}"[:ECHO_CHARACTERS_MAX]) from None
    return fields, False
