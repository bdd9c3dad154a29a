"""The views for a person: small pages, everything escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from semel.web.paths import row_path, table_path

SHOWN_CHARACTERS = 2000  # of a value in a list; the row's own page shows it whole

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222;background:#fff}
nav a{margin-right:1rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ddd}
code,pre{font:13px/1.4 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}a{color:#8bf}th,td{border-color:#444}}
"""


def page(title: str, *parts: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · semel</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        '<nav><a href="/tables">tables</a><a href="/pipelines">pipelines</a></nav>'
        f"<h1><bdi>{escape(title)}</bdi></h1>{''.join(parts)}</body></html>"
    )


def key_text(key: Any) -> str:
    """A key as it stands in a URL."""
    return key if isinstance(key, str) else json.dumps(key, default=str)


def index(app_id: str, instance: str) -> str:
    return page(app_id, f"<p>worker <bdi>{escape(instance)}</bdi></p>")


def tables(infos: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f'<a href="{escape(table_path(info["table"]))}"><bdi>{escape(info["table"])}</bdi></a>',
            f"<bdi>{escape(info['pipeline'])}</bdi>",
            str(info["partitions"]),
            "unknown" if info["rows"] is None else f"{info['rows']:,}",
        )
        for info in infos
    ]
    return page("tables", _table(("table", "pipeline", "partitions", "rows"), rows))


def rows(table: str, found: Mapping[str, Any], next_page: str | None, prefix: str | None) -> str:
    lines = [
        (
            _row_link(table, row["key"]),
            f"<code>{escape(_cut(_text(row['value'])))}</code>",
            ", ".join(map(str, row.get("partitions") or [row["partition"]])),
        )
        for row in found["rows"]
    ]
    search = (
        f'<form action="{escape(table_path(table))}"><label>prefix <input name="prefix" value="{escape(prefix or "")}">'
        "</label> <button>show</button></form>"
    )
    more = f'<p><a href="{escape(next_page)}">next page</a></p>' if next_page else ""
    return page(table, search, _table(("key", "value", "partition"), lines), more)


def document(title: str, found: Any) -> str:
    """Anything else, as indented JSON."""
    return page(title, f"<pre>{escape(_text(found, indent=2))}</pre>")


def refusal(status: int, body: Mapping[str, Any]) -> str:
    detail = {name: value for name, value in body.items() if name != "error"}
    return page(
        str(status),
        f"<p><bdi>{escape(str(body['error']))}</bdi></p>",
        f"<pre>{escape(_text(detail, indent=2))}</pre>" if detail else "",
    )


def _row_link(table: str, key: Any) -> str:
    label = f"<bdi><code>{escape(_cut(_text(key)))}</code></bdi>"
    try:
        return f'<a href="{escape(row_path(table, key_text(key)))}">{label}</a>'
    except UnicodeEncodeError:  # a lone surrogate has no URL
        return label


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
