"""HTML that is written by hand: the frame of a page, and a table. Nothing is loaded from elsewhere.

What is called text is escaped here; everything else is markup already.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime
from html import escape


def frame(title: str, style: str, body: str, *, head: str = "") -> str:
    """A page, to be sent or written as UTF-8. `title` is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}<style>{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Container[int] = ()) -> str:
    """`headings` are text. Columns in `numbers` have the class `n`."""

    def cells(tag: str, row: Iterable[str]) -> str:
        return "".join(f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    head = f"<thead><tr>{cells('th', map(escape, headings))}</tr></thead>" if any(headings) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def moment(ms: int) -> str:
    """A time, as text; one that no calendar has is shown as the number that it is."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return str(ms)
