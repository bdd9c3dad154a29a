"""Dead letters for a person: what failed alike, one letter, its edit, what runs and what was done.

All that letters hold is hostile and is escaped; nothing runs in the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from semel.dead_letters.audit import called
from semel.display import markup
from semel.display.counting import counted
from semel.web.html import json_text, page
from semel.web.paths import letters_path, query, quote_key

SHOWN_CHARACTERS = 200  # of a key or an error in a list
REFRESH_S = 2
_BAR_PX = 240

_STYLE = """
form.act{border:1px solid var(--line);border-radius:.5rem;padding:.8rem;margin:.8rem 0;background:var(--soft)}
form.act label{margin-right:1rem}textarea{width:100%;box-sizing:border-box;font:13px/1.4 ui-monospace,monospace}
form.act p{margin:.6rem 0 0}form{margin:.8rem 0}
details{margin:.4rem 0}summary{cursor:pointer}.tabs a{margin-right:1rem}.tabs b{margin-right:1rem}
.add{color:var(--good)}.del{color:var(--bad)}dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}
dl.facts dd{margin:0;overflow-wrap:anywhere}
@media(min-width:60rem){td .when{white-space:nowrap}}
"""


class Frame(NamedTuple):
    """What all pages have. `csrf`: what their forms carry; `closed`: why nobody may act, else empty; `name`: who one is, unless
    one says otherwise; None where a token says it."""

    app: str
    csrf: str
    closed: str
    name: str | None

    @property
    def root(self) -> str:
        return letters_path(self.app)


def groups(frame: Frame, document: Mapping[str, Any]) -> str:
    show = document["show"]
    # A column that says nothing takes the room of those that do.
    versions = any(group["version"] for group in document["groups"])
    rows = [
        (
            f"{group['count']:,}",
            f"{'' if group['keys_exact'] else '~'}{group['keys']:,}",
            _time(group["first_seen"]),
            _time(group["last_seen"]),
            *([_code(group["version"] or "–")] if versions else []),
            _link(f"{frame.root}/groups/{_quoted(group['fingerprint'])}{_shown(show)}", group["fingerprint"])
            + f"<br><span class=dim><bdi>{escape(_cut(group['error']))}</bdi></span>",
        )
        for group in document["groups"]
    ]
    headings = ("letters", "keys", "first seen", "last seen", *(["first in version"] if versions else []), "group")
    read = document["read"]
    progress = ""
    if not document["complete"]:
        share = read["done"] / max(1, read["total"])
        progress = (
            f'<p><progress value="{share:.3f}"></progress> {read["done"]:,} of {read["total"]:,} records are read; what is '
            "counted so far:</p>"
        )
    none = "" if rows else f"<p>No {'open' if show == 'open' else show} dead letters.</p>"
    others = document["other_letters"]
    return _page(
        frame, "dead letters",
        _tabs(frame, show), _search(frame, ""), progress, markup.table(headings, rows, {0, 1}) if rows else none,
        f"<p>{counted(others, 'more letter is', 'more letters are')} beyond what is kept here; semel dlq knows them.</p>"
        if others
        else "",
        _act(frame, "replay", "Replay all that is open", {"all": "1"}, rate=True) if show == "open" and rows else "",
        refresh_s=None if document["complete"] else REFRESH_S,
    )  # fmt: skip


def group(frame: Frame, document: Mapping[str, Any]) -> str:
    fingerprint, show = document["fingerprint"], document["show"]
    here = f"{frame.root}/groups/{_quoted(fingerprint)}"
    facts = _facts(
        [
            ("fingerprint", _code(fingerprint)),
            ("letters", f"{document['open']:,} open, {document['done']:,} done{_hidden_until(document)}"),
            ("keys", f"{'' if document['keys_exact'] else '~'}{document['keys']:,}"),
            (
                "first seen",
                _time(document["first_seen"])
                + (f", in version {_code(document['version'])}" if document["version"] else ""),
            ),
            ("last seen", _time(document["last_seen"])),
            ("error", _code(_cut(document["error"]))),
        ]
    )
    other = ("done", "those done with") if show != "done" else ("open", "open ones")
    forms = ""
    if document["open"]:
        which = {"group": fingerprint}
        forms = (
            _act(frame, "replay", f"Replay what is open ({document['open']:,})", which, rate=True)
            + _act(frame, "drop", f"Drop what is open ({document['open']:,})", which)
            + (
                _act(frame, "archive", "Archive: hide until a letter of it comes", which)
                if document["state"] == "open"
                else ""
            )
        )
    return _page(
        frame, "group",
        facts, forms, f'<p><a href="{escape(here + _shown(other[0]))}">{other[1]}</a></p>',
        _rows(frame, document["letters"], none=f"No letter of this group is {'done with' if show == 'done' else 'open'}."),
        _next(here, {"show": show}, document["next"]),
    )  # fmt: skip


def _hidden_until(group: Mapping[str, Any]) -> str:
    return "; archived until a letter of it comes" if group["state"] == "archived" else ""


def search_results(frame: Frame, document: Mapping[str, Any]) -> str:
    text = document["search"]
    more = "" if document["next"] is None else " There is more to search."
    searched = counted(document["searched"], "offset")
    order = ", the last ones first" if len(document["letters"]) > 1 else ""
    found = f"{counted(len(document['letters']), 'letter')}{order}; {searched} of the topic searched."
    return _page(
        frame, "search", _search(frame, text),
        f"<p>{found}{more}</p>" if document["letters"] or more else "",
        _rows(frame, document["letters"], groups=True, none="No letter has that."),
        _next(frame.root, {"search": text}, document["next"]),
    )  # fmt: skip


def letter(frame: Frame, document: Mapping[str, Any]) -> str:
    at = document["position"]
    here = f"{frame.root}/letters/{_quoted(at)}"
    state = document["state"]
    facts = _facts(
        [
            ("state", f"<b>{escape(called(state))}</b>{', and its key waits for it' if document['holds_key'] else ''}"),
            ("group", _link(f"{frame.root}/groups/{_quoted(document['fingerprint'])}", document["fingerprint"])),
            ("error", _code(document["error"])),
            ("source", _code(document["source"])),
            ("agent", _code(document["agent"])),
            ("version", _code(document["version"] or "–")),
            ("attempts", str(document["attempts"])),
            ("event time", _time(document["event_time"])),
            ("first, last failed", f"{_time(document['first_seen'])}, {_time(document['last_seen'])}"),
            ("revision", str(document["revision"])),
            ("key", _code(json_text(document["key"]))),
        ]
    )
    value = document["value_from"] if document["left_out"] and document["value"] is None else None
    shown = escape(value) if value else f"<pre>{escape(json_text(document['value'], indent=2))}</pre>"
    wrong = "" if document["decoded"] else "<p class=bad>It is not of the type that the topic declares.</p>"
    forms = ""
    if state in ("open", "archived"):
        forms = (
            f'<p><a href="{escape(here)}/edit"><b>Edit the value</b></a></p>'
            + _act(frame, "replay", "Replay as it is", {"letter": at})
            + _act(frame, "drop", "Drop", {"letter": at})
        )
    history = [
        (escape(e["action"]), _time(e["at"]), _code(e["by"]), _code(e["reason"]), f"{e['letters']:,}")
        for e in document["history"]
    ]
    return _page(
        frame, f"letter {at}", facts, "<h2>value</h2>", wrong, shown, forms,
        "<h2>what was done</h2>" + markup.table(("action", "at", "by", "reason", "letters"), history, {4}) if history else "",
        "<h2>headers</h2>" + _headers(document["headers"]) if document["headers"] else "",
        f"<h2>trace</h2><pre>{escape(document['trace'])}</pre>" if document["trace"] else "",
        f"<details><summary>what semel noted</summary>{_headers(document['appended'])}</details>",
    )  # fmt: skip


def edit(frame: Frame, document: Mapping[str, Any]) -> str:
    """`wrong`: why what was written is no value; it stands there to be written further."""
    at = document["position"]
    here = f"{frame.root}/letters/{_quoted(at)}"
    # A line break right after the tag is not the text's: browsers drop it.
    area = f'<textarea name="text" rows="20" spellcheck="false">\n{escape(document["text"])}</textarea>'
    return _page(
        frame, f"edit {at}",
        f'<p class=bad><bdi>{escape(document["error"])}</bdi></p><p><a href="{escape(here)}">the letter</a> stays as it is; '
        "the replay has the new value</p>",
        f'<p class=bad><bdi>{escape(document["wrong"])}</bdi></p>' if document.get("wrong") else "",
        _why_not(frame)
        or f'<form class=act method="post" action="{escape(here)}/diff">{_hidden(frame, {})}{area}'
        "<p><button>Show what changes</button></p></form>",
    )  # fmt: skip


def diff(frame: Frame, document: Mapping[str, Any]) -> str:
    at = document["position"]
    here = f"{frame.root}/letters/{_quoted(at)}"
    lines = "".join(
        f"<span class={'add' if line.startswith('+') else 'del' if line.startswith('-') else 'dim'}>{escape(line)}</span>\n"
        for line in document["changes"]
    )
    if not document["changes"]:
        back = f'<p><a href="{escape(here)}/edit">edit it again</a></p>'
        return _page(frame, f"edit {at}", "<p>Nothing changes.</p>", back)
    # What was written goes along: a link would begin with the value of the letter anew.
    back = (
        f'<form method="post" action="{escape(here)}/diff">{_hidden(frame, {"text": document["text"], "back": "1"})}'
        "<button>Edit it again</button></form>"
    )
    warning, extra = "", ""
    if document["other_id"]:
        warning = f"<p class=bad><bdi>{escape(document['other_id'])}.</bdi></p>"
        extra = '<label><input type="checkbox" name="new_id" value="1" required> that is meant</label>'
    extra += '<label><input type="checkbox" name="hold" value="1"> hold it, and replay it later</label>'
    fields = {"letter": at, "text": document["text"]}
    return _page(
        frame, f"edit {at}", f"<pre>{lines}</pre>", warning,
        _act(frame, "edit", "Replay with this value", fields, extra=extra, opened=True), back,
    )  # fmt: skip


def audit(frame: Frame, document: Mapping[str, Any]) -> str:
    rows = [
        (
            _time(entry["at"]),
            escape(entry["action"]),
            f"{entry['letters']:,}",
            _code(entry["by"]),
            _code(entry["reason"]),
            "<br>".join(_code(name) for name in list(entry["groups"])[:5]),
        )
        for entry in document["entries"]
    ]
    more = document["next"]
    return _page(
        frame, "audit", _tabs(frame, "audit"),
        f"<p>What was done, the last first, as <code>{escape(document['topic'])}</code> has it.</p>",
        markup.table(("at", "action", "letters", "by", "reason", "groups"), rows, {2}) if rows else "<p>Nothing yet.</p>",
        "" if more is None else f'<p><a href="{escape(frame.root)}/audit?before={more}">earlier</a></p>',
    )  # fmt: skip


def actions(frame: Frame, document: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            _link(f"{frame.root}/actions/{_quoted(run['id'])}", run["id"]),
            escape(run["action"]),
            escape(run["state"]),
            f"{run['letters']:,}",
            _code(run["by"]),
            _time(run["began"]),
        )
        for run in document
    ]
    return _page(
        frame, "actions", _tabs(frame, "actions"), "<p>Of this worker since it started; the audit has all.</p>",
        markup.table(("action", "kind", "state", "letters", "by", "began"), rows, {3}) if rows else "<p>None.</p>",
        refresh_s=REFRESH_S if any(run["state"] == "running" for run in document) else None,
    )  # fmt: skip


def action(frame: Frame, document: Mapping[str, Any]) -> str:
    run = document
    running = run["state"] == "running"
    which = (
        f"letter {run['letter']}" if run["letter"] else f"group {run['group']}" if run["group"] else "all open letters"
    )
    back = f"{run['came_back']:,} came back to the dead letters" if run["came_back"] else "none came back"
    known = f"{run['known']:,}, of which {f'<b class=bad>{back}</b>' if run['came_back'] else back}"
    facts = _facts(
        [
            ("state", f"<b class={'good' if run['state'] == 'done' else 'bad' if run['state'] == 'failed' else 'dim'}>"
             f"{escape(run['state'])}</b>"),
            ("of", _code(which)),
            ("by", _code(run["by"])),
            ("reason", _code(run["reason"])),
            ("began", _time(run["began"])),
            ("ended", "–" if run["ended"] is None else _time(run["ended"])),
            ("letters done with", f"{run['letters']:,}"),
            *([("fate known of", known)] if run["action"] in ("replay", "edit") else []),
        ]
    )  # fmt: skip
    remarks = [text for text in (run["stopped"], run["error"]) if text]
    remarks += [f"{count:,} were left out: {why}" for why, count in run["skipped"].items()]
    stop = ""
    if running and not frame.closed:
        stop = (
            f'<form class=act method="post" action="{escape(frame.root)}/actions/{_quoted(run["id"])}/stop">'
            f"{_hidden(frame, {})}<button>Stop it</button> what is committed stays done</form>"
        )
    letter_link = (
        f'<p><a href="{escape(frame.root)}/letters/{_quoted(run["letter"])}">the letter</a></p>'
        if run["letter"]
        else ""
    )
    return _page(
        frame, f"{run['action']} {run['id']}", facts,
        "".join(f"<p class={'bad' if run['state'] == 'failed' else 'dim'}><bdi>{escape(text)}</bdi></p>" for text in remarks),
        stop, letter_link, refresh_s=REFRESH_S if running else None,
    )  # fmt: skip


# -- parts


def _page(frame: Frame, title: str, *parts: str, refresh_s: int | None = None) -> str:
    above = f'<p class=dim><a href="{escape(frame.root)}">dead letters of <bdi>{escape(frame.app)}</bdi></a></p>'
    return page(title, above, *parts, refresh_s=refresh_s, style=_STYLE)


def _tabs(frame: Frame, current: str) -> str:
    links = {"open": "", "archived": "?show=archived", "done": "?show=done", "audit": "/audit", "actions": "/actions"}
    return (
        '<p class="tabs">'
        + "".join(
            f"<b>{name}</b>" if name == current else f'<a href="{escape(frame.root + path)}">{name}</a>'
            for name, path in links.items()
        )
        + "</p>"
    )


def _search(frame: Frame, text: str) -> str:
    return (
        f'<form action="{escape(frame.root)}"><label>search <input name="search" value="{escape(text)}" '
        'placeholder="in key, value, error, trace, headers" size="40"></label> <button>search</button></form>'
    )


def _rows(
    frame: Frame, letters: Sequence[Mapping[str, Any]], *, groups: bool = False, none: str = "No letters."
) -> str:
    if not letters:
        return f"<p>{escape(none)}</p>"
    lines = [
        (
            _link(f"{frame.root}/letters/{_quoted(row['position'])}", row["position"]),
            _code(_cut(json_text(row["key"]))),
            _time(row["last_seen"]),
            escape(called(row["state"])) + (", holds its key" if row["holds_key"] else ""),
            (_code(row["fingerprint"]) + "<br>" if groups else "") + f"<bdi>{escape(_cut(row['error']))}</bdi>",
        )
        for row in letters
    ]
    return markup.table(("letter", "key", "last seen", "state", "error"), lines)


def _act(
    frame: Frame, action: str, label: str, fields: Mapping[str, str], *, rate: bool = False, extra: str = "", opened: bool = False
) -> str:  # fmt: skip
    """A form that does something, folded until somebody wants it."""
    if why_not := _why_not(frame):
        return why_not if opened or action == "replay" else ""
    needed = " required" if action in ("edit", "drop") else ""
    who = ""
    if frame.name is not None:
        who = f'<label>by <input name="as" value="{escape(frame.name)}" size="12"></label>'
    speed = '<label>letters a second <input name="rate" value="100" size="6"></label>' if rate else ""
    form = (
        f'<form class=act method="post" action="{escape(frame.root)}/actions">{_hidden(frame, {"action": action, **fields})}'
        f'<label>why <input name="reason" size="40" maxlength="1000"{needed}></label>{who}{speed}{extra}'
        f"<p><button>{escape(label)}</button></p></form>"
    )
    return form if opened else f"<details><summary>{escape(label)}</summary>{form}</details>"


def _why_not(frame: Frame) -> str:
    return f"<p class=dim>{escape(frame.closed)}</p>" if frame.closed else ""


def _hidden(frame: Frame, fields: Mapping[str, str]) -> str:
    return "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in {"csrf": frame.csrf, **fields}.items()
    )


def _next(path: str, asked: Mapping[str, str], token: str | None) -> str:
    if token is None:
        return ""
    return f'<p><a href="{escape(path + query([*asked.items(), ("page", token)]))}">further</a></p>'


def _headers(headers: Sequence[Sequence[str | None]]) -> str:
    return markup.table(
        ("name", "value"),
        [
            (_code(str(name)), "<span class=dim>null</span>" if value is None else _code(value))
            for name, value in headers
        ],
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    """Names are text, values markup."""
    return (
        f"<dl class=facts>{''.join(f'<dt class=dim>{escape(name)}</dt><dd>{value}</dd>' for name, value in facts)}</dl>"
    )


def _code(text: str) -> str:
    return f"<bdi><code>{escape(text)}</code></bdi>"


def _link(path: str, text: str) -> str:
    return f'<a href="{escape(path)}">{_code(text)}</a>'


def _quoted(text: str) -> str:
    return quote_key(text.encode(errors="replace").decode())


def _shown(show: str) -> str:
    return "" if show == "open" else f"?show={show}"


def _time(ms: int) -> str:
    return "–" if ms < 0 else f"<span class=when>{escape(markup.moment(ms))}</span>"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
