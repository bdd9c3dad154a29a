"""HTML that is written by hand: the frame of a page, its looks, a table and a list. Nothing is loaded from elsewhere.

What is called text is escaped here; everything else is markup already.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime
from html import escape

_STYLE = """
:root{color-scheme:light dark;--ink:#222;--back:#fff;--soft:#f6f8fa;--line:#ddd;--dim:#777;--link:#06c;
  --good:#1a7f37;--bad:#b22;--unsure:#9a6700}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--back:#181818;--soft:#222;--line:#444;--dim:#aaa;--link:#8bf;
  --good:#3fb950;--bad:#f88;--unsure:#d29922}}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:var(--ink);background:var(--back)}
a{color:var(--link)}table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
code,pre{font:13px/1.4 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad);font-weight:bold}
"""


def frame(title: str, style: str, body: str, *, head: str = "") -> str:
    """A page, to be sent or written as UTF-8. `title` is text. `style`: what it has of its own, over what all pages have."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}<style>{_STYLE}{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Container[int] = ()) -> str:
    """`headings` are text. Columns in `numbers` have the class `n`."""

    def cells(tag: str, row: Iterable[str]) -> str:
        return "".join(f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    head = f"<thead><tr>{cells('th', map(escape, headings))}</tr></thead>" if any(headings) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def listing(heading: str, items: Sequence[str]) -> str:
    """Nothing where there are no items."""
    return f"<h2>{heading}</h2><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def moment(ms: int) -> str:
    """A time, as text; one that no calendar has is shown as the number that it is."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return str(ms)
