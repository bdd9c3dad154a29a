"""Declaration changes: what passes, what is migrated, what is refused where state is of another declaration (rule 24)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import orjson

from semel.errors import ShapeChanged
from semel.plan import Plan, TablePlan
from semel.schema.fingerprint import differences
from semel.state.positions import Position

WAYS = (
    "Put the declaration back; or give the table migrate=, a function that makes a row of today's type of an old one; or run "
    "under another name; or run `semel reset` to rebuild state from the source, which writes results again"
)


@dataclass(slots=True)
class Changes:
    """`notes`: what a person should know. `migrate`: tables whose rows are to be migrated, and to what.

    `window_ms`: the dedup window that was, where it is another now; else 0. `time`: without dedup, something else gives the
    event time, so that stream time begins anew.
    """

    notes: list[str] = field(default_factory=list[str])
    migrate: dict[str, str] = field(default_factory=dict[str, str])
    compare: bool = False
    window_ms: int = 0
    time: bool = False


def changes(plan: Plan, recorded: Position, types: str) -> Changes:
    """What changed since the position was written. ShapeChanged where state would be read wrongly.

    `types`: `Plan.types` of now. Positions of versions that noted none are compared by the names of types.
    """
    changed = Changes()
    if not recorded.shape:
        return changed
    before, after = orjson.loads(recorded.shape), orjson.loads(plan.shape())
    old: dict[str, Any] = orjson.loads(recorded.types) if recorded.types else {"tables": {}, "dedup": {}}
    new: dict[str, Any] = orjson.loads(types)
    problems: list[str] = []
    declared = {table.name: table for table in plan.tables}
    for name, shape in before["tables"].items():
        table = declared.get(name)
        if table is None:
            problems.append(f"table {name!r} is no longer declared")
            continue
        why = _of_table(shape, after["tables"][name], old["tables"].get(name), new["tables"].get(name))
        target = target_of(table)
        half = recorded.migrating.get(name)
        if half is not None and half[1] != target:
            problems.append(f"the rows of table {name!r} are half migrated, to another type than it has now")
        elif half is not None or (why and table.migrate is not None):
            if table.migrate is None:
                problems.append(f"the rows of table {name!r} are half migrated, and it has no migrate= any more")
            changed.migrate[name] = target
        elif why:
            problems.append(f"table {name!r}: {'; '.join(why)}")
    problems += _of_dedup(plan, before["dedup"], after["dedup"], old["dedup"], new["dedup"], changed)
    if problems:
        raise ShapeChanged(
            f"{plan.app!r} is declared differently from when its state was made: {'; '.join(problems)}. {WAYS}"
        )
    was, is_now = before.get("time", {}), after.get("time", {})
    others = sorted(name for name in recorded.topics if name in plan.sources and was.get(name) != is_now.get(name))
    if others:
        changed.time = True
        changed.notes.append(
            f"what gives the time of events of {', '.join(others)} is another than when {plan.app!r} ran last: its stream time "
            "begins anew"
        )
    gone = sorted(set(recorded.topics) - set(plan.sources))
    if gone:
        stood = ", ".join(f"{name} at offset {recorded.topics[name].next}" for name in gone)
        changed.notes.append(
            f"{plan.app!r} read {stood} when it ran last, and does not any more; rows and dedup marks of it stay. Declared "
            "again, it is read on from there"
        )
    return changed


def target_of(table: TablePlan) -> str:
    """What rows of the table are migrated to, in short."""
    declared = orjson.dumps([table.structure, table.shape], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(declared).hexdigest()[:16]


def _of_table(shape: Any, shape_now: Any, structure: Any, structure_now: Any) -> list[str]:
    """What keeps rows from being read as declared."""
    if structure is None or structure_now is None or (structure["value"] is None) != (structure_now["value"] is None):
        return [] if shape == shape_now else [f"it was {shape}, is {shape_now}"]
    why: list[str] = []
    if structure["version"] != structure_now["version"]:
        why.append(f"its version was {structure['version']}, is {structure_now['version']}")
    if structure["value"] is None:
        if shape["value"] != shape_now["value"]:
            why.append(f"its value was {shape['value']}, is {shape_now['value']}")
    else:
        why += differences(structure["value"], structure_now["value"])
    if structure["key"] != structure_now["key"] or (structure["key"] is None and shape["key"] != shape_now["key"]):
        why.append(f"its key was {shape['key']}, is {shape_now['key']}")
    if shape["merge"] != shape_now["merge"]:
        why.append(f"merge= was {'' if shape['merge'] else 'not '}given, is {'' if shape_now['merge'] else 'not '}")
    return why


def _of_dedup(plan: Plan, before: Any, after: Any, code: Any, code_now: Any, changed: Changes) -> list[str]:
    if before is None or after is None:
        return [] if before == after else [f"the dedup rule was {before}, is {after}"]
    if any(before.get(name) != after.get(name) for name in ("key", "time")):
        return [f"the dedup rule was {before}, is {after}"]
    if before["window_ms"] != after["window_ms"]:
        changed.window_ms = before["window_ms"]
        longer = after["window_ms"] > before["window_ms"]
        changed.notes.append(
            f"the dedup window of {plan.app!r} was {before['window_ms']} ms, is {after['window_ms']} ms: ids "
            + ("whose marks had expired by the old one are not known again" if longer else "from before the new one are not "
               "known any more")
        )  # fmt: skip
    other = {
        name
        for name in ("key", "time", "compare", "content")
        if code.get(name) and code.get(name) != code_now.get(name)
    }
    if before.get("compare") != after.get("compare") or "compare" in other:
        changed.compare = True
        changed.notes.append(
            f"compare= of {plan.app!r} is another: of an event from before, whatever has its id counts as its duplicate, none as "
            "a conflict"
        )
    for name, what in (("key", "the function that makes the dedup key"), ("time", "the function that reads the event time"),
                       ("content", "the type that content_hash() is over")):  # fmt: skip
        if name in other and code_now.get(name):
            changed.notes.append(
                f"{what} of {plan.app!r} is another than when its marks were made: an event from before that it reads "
                "otherwise is not known again, and takes effect once more if it is redelivered"
            )
    return []
