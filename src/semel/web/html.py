"""The views for a person: small pages, everything escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from semel.display import markup
from semel.display.counting import counted
from semel.state.positions import accepted
from semel.web.answer import TOO_DEEP
from semel.web.paths import row_path, table_path
from semel.web.view import Owner

SHOWN_CHARACTERS = 2000  # of a value in a list; the row's own page shows it whole

SHOWN_TOPICS = 5

REFRESH_S = 2
# What a refusal names as paths of this worker, and how a link there is called.
_LED_ON = {"dead_letters": "dead letters", "audit": "the audit"}

STYLE = """
nav a{margin-right:1rem}h1 small{font-weight:normal;color:var(--dim)}
.flow{display:flex;flex-wrap:wrap;gap:1.6rem;list-style:none;margin:1rem 0;padding:0}
.flow li{flex:1 1 9rem;position:relative;border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}
.flow li+li::before{content:"→";position:absolute;left:-1.4rem;top:.5rem;color:var(--dim)}
.flow h2{font-size:1rem;margin:0}.flow p{margin:0 0 .4rem;color:var(--dim);font-size:.85rem;overflow-wrap:anywhere}
.flow dl{display:grid;grid-template-columns:1fr auto;gap:0 .6rem;margin:0;font-size:.9rem}
.flow dd{margin:0;text-align:right;font-variant-numeric:tabular-nums}
.cards li+li::before{content:none}.cards{gap:1rem}
"""


def page(title: str, *parts: str, refresh_s: int | None = None, style: str = "") -> str:
    refresh = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">'
    views = {"/": "overview", "/tables": "tables", "/pipelines": "pipelines", "/dead-letters": "dead letters"}
    links = "".join(f'<a href="{path}">{name}</a>' for path, name in views.items())
    body = f"<nav>{links}</nav><h1><bdi>{escape(title)}</bdi></h1>{''.join(parts)}"
    return markup.frame(f"{title} · semel", STYLE + style, body, head=refresh)


def key_text(key: Any) -> str:
    """A key as it stands in a URL."""
    return key if isinstance(key, str) else json.dumps(key, default=str)


def index(app_id: str, instance: str, statuses: Sequence[Mapping[str, Any]], owners: Sequence[Owner]) -> str:
    """What a person wants to know first: whether it runs, how far behind it is, and where to look further."""
    parts = [f"<p>worker <bdi>{escape(instance)}</bdi></p>"]
    for pipeline in statuses:
        parts.append(_overview(pipeline, owners) if "graph" in pipeline else _pipeline(pipeline))
    parts.append(
        '<p>of this worker: <a href="/pipelines">pipelines</a>, <a href="/readyz">readyz</a>, '
        '<a href="/livez">livez</a>, <a href="/metrics">metrics</a></p>'
    )
    return page(app_id, *parts, refresh_s=REFRESH_S)


def _overview(status: Mapping[str, Any], owners: Sequence[Owner]) -> str:
    counts, tasks = status["counts"], status["tasks"]

    def count(name: str) -> int:
        return counts.get(name, 0)

    running = sum(task["state"] == "running" for task in tasks)
    cards = (
        (
            "tasks",
            [_listed(task["partition"] for task in tasks) or "none here"],
            [("running", running), ("restoring", len(tasks) - running)],
        ),
        (
            "progress",
            status["graph"]["source"],
            [
                ("lag", status["lag"]),
                ("records/s", status["events_per_s"]),
                ("records", count("in")),
                ("parked", _parked_events(status)),
                *_timers(status),
            ],
        ),
        (
            "outcomes",
            ["of the records"],
            [
                ("accepted", accepted(counts)),
                ("duplicates", count("duplicates")),
                # Not what was replayed of the dead letters.
                ("met again", count("replayed")),
                ("dropped", count("dropped")),
                ("dead-lettered", count("dead")),
            ],
        ),
    )
    tables_here = ", ".join(map(_table_link, status["graph"]["tables"]))
    return (
        _trouble(status)
        + _rate_limits(status)
        + _parked(status)
        + _held_keys(status)
        + f'<ol class="flow cards">{"".join(_stage(*card) for card in cards)}</ol>'
        + "<p>Numbers are of the partitions held here, since they were first processed.</p>"
        + (f"<p>tables: {tables_here}</p>" if tables_here else "")
        + markup.table(("worker", "partitions"), _workers(status, owners))
    )


def _workers(status: Mapping[str, Any], owners: Sequence[Owner]) -> list[list[str]]:
    """Every worker that holds a partition; the others are links to their own overview."""
    held: dict[tuple[str, str | None], list[int]] = {}
    for owner in owners:
        name = status["owners"].get(str(owner.partition))
        held.setdefault((name or owner.url or "?", owner.url), []).append(owner.partition)
    lines: list[list[str]] = []
    for (name, url), theirs in sorted(held.items(), key=lambda entry: entry[0][0]):
        label = f"<bdi>{escape(name)}</bdi>"
        # What a member of the group says of itself: nothing but a link to a page.
        if url is not None and url.startswith(("http://", "https://")):
            label = f'<a href="{escape(url.rstrip("/"))}/">{label}</a>'
        lines.append([label + (" (this one)" if name == status["instance"] else ""), _listed(theirs)])
    return lines


def _listed(partitions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(partitions)))


def tables(infos: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            _table_link(info["table"]),
            f"<bdi>{escape(info['pipeline'])}</bdi>",
            escape(str(info["partitions"])),
            _rows(info),
        )
        for info in infos
    ]
    return page("tables", markup.table(("table", "pipeline", "partitions", "rows"), rows))


def _rows(info: Mapping[str, Any]) -> str:
    if info["rows"] is None:
        return "unknown"
    partial = " partial, a key in several partitions counted in each" if info.get("partial") else ""
    return f"{info['rows']:,}{partial}"


def rows(
    table: str, answer: Mapping[str, Any], next_page: str | None, prefix: str | None, numeric: bool = False
) -> str:
    """`numeric`: the keys are numbers, and the order of the rows is not theirs."""
    lines = [
        (
            _row_link(table, row["key"]),
            f"<code>{escape(_cut(json_text(row['value'])))}</code>",
            escape(", ".join(map(str, row.get("partitions") or [row["partition"]]))),
        )
        for row in answer["rows"]
    ]
    search = (
        f'<form action="{escape(table_path(table))}"><label>prefix <input name="prefix" value="{escape(prefix or "")}">'
        "</label> <button>show</button></form>"
    )
    more = f'<p><a href="{escape(next_page)}">next page</a></p>' if next_page else ""
    order = "<p>Rows stand in the order of their keys as text: 10 before 2.</p>" if numeric else ""
    return page(table, search, order, markup.table(("key", "value", "partition"), lines), more)


def pipelines(statuses: Sequence[Mapping[str, Any]]) -> str:
    """What runs on this worker: the five stages with their numbers, and its tasks. It loads itself again."""
    return page("pipelines", *map(_pipeline, statuses), refresh_s=REFRESH_S)


def _pipeline(status: Mapping[str, Any]) -> str:
    if "graph" not in status:
        return f"<pre>{escape(json_text(status, indent=2))}</pre>"
    graph, counts, commits = status["graph"], status["counts"], status["commits"]
    dedup = graph["dedup"]

    def count(name: str) -> int:
        return counts.get(name, 0)

    stages = (
        ("source", graph["source"], [("records", count("in")), ("lag", status["lag"]), ("dropped", count("dropped"))]),
        (
            "dedup",
            [f"by {dedup['key']}"] if dedup else ["none"],
            [
                ("duplicates", count("duplicates")),
                ("conflicts", count("conflicts")),
                ("met again", count("replayed")),
            ],
        ),
        (
            "agent",
            graph["agents"],
            [
                ("accepted", accepted(counts)),
                ("records/s", status["events_per_s"]),
                ("parked", _parked_events(status)),
                *_timers(status),
            ],
        ),
        ("sink", graph["sink"] or ["none"], [*_results(status), ("dead-lettered", count("dead"))]),
        (
            "commit",
            ["one transaction each"],
            [(name, commits.get(name, 0)) for name in ("commits", "aborts", "unknown", "fences")]
            + [("median ms", commits.get("p50_ms"))],
        ),
    )
    held: dict[str, list[int]] = {}
    for partition, instance in status["owners"].items():
        held.setdefault(instance, []).append(int(partition))
    group = "; ".join(f"{name}: {', '.join(map(str, sorted(theirs)))}" for name, theirs in sorted(held.items()))
    tables_here = ", ".join(map(_table_link, graph["tables"]))
    return (
        f"<h2><bdi>{escape(status['pipeline'])}</bdi> on worker <bdi>{escape(status['instance'])}</bdi></h2>"
        + _trouble(status)
        + _rate_limits(status)
        + _parked(status)
        + _held_keys(status)
        + f'<ol class="flow">{"".join(_stage(*stage) for stage in stages)}</ol>'
        + "<p>Numbers are of the partitions held here, since they were first processed; commits since the start.</p>"
        + markup.table(
            ("partition", "state", "position", "lag", "parked", "stream time"),
            [
                (
                    str(task["partition"]),
                    escape(_state(task)),
                    escape(", ".join(f"{topic} {_number(at)}" for topic, at in task["position"].items())),
                    _number(task["lag"]),
                    _number(status.get("parked", {}).get(str(task["partition"]), {}).get("events", 0)),
                    _stream_time(task["stream_time_ms"]),
                )
                for task in status["tasks"]
            ],
        )
        + f"<p>partitions by worker: <bdi>{escape(group or 'not assigned yet')}</bdi></p>"
        + (f"<p>tables: {tables_here}</p>" if tables_here else "")
    )


def _results(status: Mapping[str, Any]) -> list[tuple[str, int]]:
    """How many went to the sink, and to each topic that results named themselves."""
    sinks = status["graph"]["sink"]
    elsewhere = {topic: n for topic, n in sorted(status.get("outputs", {}).items()) if topic not in sinks}
    there = status["counts"].get("out", 0) - sum(elsewhere.values())
    lines = [("results", there)] if sinks or there or not elsewhere else []
    if len(elsewhere) > SHOWN_TOPICS:
        return [*lines, (f"to {len(elsewhere)} other topics", sum(elsewhere.values()))]
    return [*lines, *((f"to {topic}", n) for topic, n in elsewhere.items())]


def _trouble(status: Mapping[str, Any]) -> str:
    """Why nothing moves, in the worker's own words; nothing where it does."""
    why = [status["waiting_for"]] if status["waiting_for"] else []
    why += [f"paused by {status['paused_by']}"] if status["paused_by"] else []
    why += [
        f"agent {event['agent']} has been at {event['record']} for {event['seconds']:.0f} s; it waits at {event['waits_at']}"
        for event in status.get("in_hand", ())
    ]
    why += [
        f"agent {idle['agent']} asks for no record"
        + (f", though {idle['record']} has waited for {idle['seconds']:.0f} s" if idle["record"] else "")
        + f"; {idle['why']}"
        for idle in status.get("not_asking", ())
    ]
    why += [
        f"agent {silent['agent']} has handled {counted(silent['events'], 'event')} and none had a result for {silent['sink']}"
        for silent in status.get("without_results", ())
    ]
    why += [
        f"agent {halted['agent']} has halted: {counted(halted['failed'], 'event')} failed alike and none succeeded, the last "
        f"with {halted['error']}; one is tried in {halted['next_probe_s']:.0f} s"
        for halted in status.get("halted", ())
    ]
    why += [
        f"partition {partition} takes no further events: {parked['held_up']}"
        for partition, parked in status.get("parked", {}).items()
        if parked["held_up"]
    ]
    why += [f"{partition} cannot be read: {reason}" for partition, reason in status.get("unreadable", {}).items()]
    return "".join(f'<p class="bad"><bdi>{escape(line)}</bdi></p>' for line in why)


def _held_keys(status: Mapping[str, Any]) -> str:
    """How many keys wait for somebody who acts."""
    held = sum(parked.get("held", 0) for parked in status.get("parked", {}).values())
    keys, their = f"{counted(held, 'key')} {'is' if held == 1 else 'are'} held", "its" if held == 1 else "their"
    text = (
        f"{keys}: {their} later events wait until a dead letter that holds the key is replayed with success, or dropped"
    )
    return f"<p>{text}</p>" if held else ""


def _parked_events(status: Mapping[str, Any]) -> int:
    return sum(parked["events"] for parked in status.get("parked", {}).values())


def _parked(status: Mapping[str, Any]) -> str:
    """What records and lag do not count."""
    count = _parked_events(status)
    what = counted(count, "event is", "events are")
    text = f"{what} parked: in hand, or to be tried again, or behind such a one of the same key"
    return f"<p>{text}</p>" if count else ""


def _timers(status: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Outputs that are still to be sent at their time; nothing where there are none."""
    pending = sum(task.get("timers", 0) for task in status["tasks"])
    return [("timers pending", pending)] if pending else []


def _rate_limits(status: Mapping[str, Any]) -> str:
    """What its declaration allows, and whether that is what keeps events waiting."""
    lines = [
        f"agent {at['agent']} is given {_number(at['here_per_second'])} events/s at most here, of {_number(at['per_second'])} on "
        f"all workers; events have waited for that for {at['limited_s']:,.0f} s"
        + (", and do now" if at["limits"] else "")
        for at in status.get("rate_limits", ())
    ]
    return "".join(f"<p><bdi>{escape(line)}</bdi></p>" for line in lines)


def _stage(name: str, what: Sequence[str], numbers: Sequence[tuple[str, Any]]) -> str:
    lines = "".join(f"<dt>{escape(label)}</dt><dd>{_number(value)}</dd>" for label, value in numbers)
    return f"<li><h2>{escape(name)}</h2><p><bdi>{escape(', '.join(what))}</bdi></p><dl>{lines}</dl></li>"


def _state(task: Mapping[str, Any]) -> str:
    if task["state"] == "running":
        return "running"
    return f"{task['state']} {task['restored']:,} of {task['to_restore']:,}"


def _stream_time(ms: int | None) -> str:
    return "–" if ms is None else markup.moment(ms)


def _number(value: float | None) -> str:
    return "–" if value is None else escape(f"{value:,}")


def document(title: str, value: Any) -> str:
    """Anything else, as indented JSON."""
    return page(title, f"<pre>{escape(json_text(value, indent=2))}</pre>")


def refusal(status: int, body: Mapping[str, Any]) -> str:
    detail = {name: value for name, value in body.items() if name not in ("error", *_LED_ON)}
    links = "".join(
        f'<p><a href="{escape(str(body[name]))}">{label}</a></p>' for name, label in _LED_ON.items() if name in body
    )
    return page(
        str(status),
        f"<p><bdi>{escape(str(body['error']))}</bdi></p>{links}",
        f"<pre>{escape(json_text(detail, indent=2))}</pre>" if detail else "",
    )


def _table_link(table: str) -> str:
    return f'<a href="{escape(table_path(table))}"><bdi>{escape(table)}</bdi></a>'


def _row_link(table: str, key: Any) -> str:
    label = f"<bdi><code>{escape(_cut(json_text(key)))}</code></bdi>"
    try:
        return f'<a href="{escape(row_path(table, key_text(key)))}">{label}</a>'
    except UnicodeEncodeError:  # a lone surrogate has no URL
        return label


def json_text(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    except RecursionError:
        return TOO_DEEP


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
