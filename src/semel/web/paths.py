"""Keys in URLs: any text, slashes and dots included, as one percent-encoded segment, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote_to_bytes, urlencode


def quote_key(text: str) -> str:
    """`text` as one path segment. Raises UnicodeEncodeError for lone surrogates."""
    quoted = quote(text, safe="")
    # "." and ".." would be resolved away by clients and proxies.
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def unquote_key(segment: str) -> str:
    """The text of a percent-encoded segment. Raises UnicodeDecodeError where it is not UTF-8."""
    return unquote_to_bytes(segment).decode("utf-8")


def query(parameters: Iterable[tuple[str, str | int | None]]) -> str:
    """`?a=b&c=d` without those that are None, or nothing."""
    given = [(name, str(value)) for name, value in parameters if value is not None]
    return "?" + urlencode(given, quote_via=quote) if given else ""


def table_path(table: str) -> str:
    return f"/tables/{quote_key(table)}"


def row_path(table: str, key: str) -> str:
    return f"/tables/{quote_key(table)}/{quote_key(key)}"


def dedup_path(pipeline: str, written: Sequence[str]) -> str:
    """`written`: the id, or each part of one of several headers."""
    return f"/dedup/{quote_key(pipeline)}/{'/'.join(map(quote_key, written))}"


def letters_path(pipeline: str) -> str:
    return f"/dead-letters/{quote_key(pipeline)}"
