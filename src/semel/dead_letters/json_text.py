"""JSON text: one field of a value is set, and each other character stays as it was written. Pure.

Numbers have no size in JSON: whoever reads and writes all of a value rounds the long ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import orjson

# Says where a value ends; what it is nobody asks.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
_BLANK = re.compile(r"[ \t\n\r]*")


class _Part(NamedTuple):
    """A value in an object or a list: under which name or number, and from where to where."""

    name: str
    start: int
    end: int


def set_path(value: bytes | None, path: str, given: str) -> bytes:
    """A JSON value with one field set: `customer.name=...`, `items.0.price=...`. ValueError, in words."""
    raw = value or b"null"
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ValueError("the value is no JSON, and has no fields to set; give all of it with --value") from None
    try:
        orjson.loads(given)
    except orjson.JSONDecodeError:
        raise ValueError(f"{given!r} is no JSON; write text as '\"text\"'") from None
    try:
        return _set(raw.decode(), path, given.strip()).encode()
    except RecursionError:
        raise ValueError("the value is nested too deeply to find a field in it; give all of it with --value") from None


def has_path(value: bytes, path: str) -> bool:
    """Whether there is such a field already, of a JSON value. ValueError where that cannot be said."""
    text = value.decode()
    *steps, last = path.split(".")
    return _part(text, _at(text, steps, path), last, path) is not None


def _set(text: str, path: str, to: str) -> str:
    *steps, last = path.split(".")
    at = _at(text, steps, path)
    if text[at] not in "{[":
        raise ValueError(f"there is nothing to set {last!r} in, at {path!r}")
    if (part := _part(text, at, last, path)) is not None:
        return f"{text[: part.start]}{to}{text[part.end :]}"
    parts = _parts(text, at)
    end = parts[-1].end if parts else at + 1
    return f"{text[:end]}{',' if parts else ''}{json.dumps(last, ensure_ascii=False)}:{to}{text[end:]}"


def _at(text: str, steps: Sequence[str], path: str) -> int:
    """Where what these lead to begins."""
    at = _blank(text, 0)
    for step in steps:
        part = _part(text, at, step, path)
        if part is None:
            raise ValueError(f"the value has no {step!r}, of {path!r}")
        at = part.start
    return at


def _part(text: str, at: int, step: str, path: str) -> _Part | None:
    """What is called so there; None where an object has nothing of that name, or there is neither object nor list."""
    if text[at] not in "{[":
        return None
    parts = _parts(text, at)
    same = [part for part in parts if part.name == step]
    if text[at] == "[" and not same:
        raise ValueError(f"{step!r} of {path!r} is no place in a list of {len(parts)}")
    if len(same) > 1:
        raise ValueError(
            f"the value has {step!r}, of {path!r}, {len(same)} times, and which of them counts is the reader's to say; give all "
            "of it with --value"
        )
    return same[0] if same else None


def _parts(text: str, at: int) -> Sequence[_Part]:
    """Those of the object or list that begins there. The text is known to be JSON."""
    closing, parts = ("}" if text[at] == "{" else "]"), list[_Part]()
    at = _blank(text, at + 1)
    while text[at] != closing:
        name = str(len(parts))
        if closing == "}":
            name, at = _DECODER.raw_decode(text, at)
            # Behind the colon.
            at = _blank(text, _blank(text, at) + 1)
        _, end = _DECODER.raw_decode(text, at)
        parts.append(_Part(name, at, end))
        at = _blank(text, end)
        if text[at] == ",":
            at = _blank(text, at + 1)
    return parts


def _blank(text: str, at: int) -> int:
    """Where what is not blank begins."""
    match = _BLANK.match(text, at)
    return at if match is None else match.end()
