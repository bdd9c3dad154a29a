"""The rows that workers show at the end of a run, held against the changelogs: what a crash left in a store must be that.

The proof reads topics only; this looks at what the workers restored and went on with.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from semel.errors import SemelError
from semel.local.views import Views
from semel.plan import Plan, TablePlan
from semel.port import TP, Broker
from semel.proof import Law
from semel.proof.logs import Logs
from semel.runtime.clock import SystemClock
from semel.worker.view import shown_key, shown_value

SHOWN = 5


async def compare(plan: Plan, broker: Broker, views: Views, url: str) -> list[str]:
    """What is shown that the changelog does not say, or not shown that it says, as sentences; all partitions must run.

    SemelError where a table cannot be read; RpcLost where no broker answers.
    """
    logs = Logs(broker, SystemClock())
    differ: list[str] = []
    for table in plan.tables:
        parts: defaultdict[TP, dict[bytes, bytes]] = defaultdict(dict)
        async for tp, record in logs.records(plan.changelog(table.name)):
            if record.key is not None and record.value is None:
                parts[tp].pop(record.key, None)
            elif record.key is not None and record.value is not None:
                parts[tp][record.key] = record.value
        rows = [row async for page in views.pages(url, table.name) for row in page]
        differ += differences(table, list(parts.values()), rows)
    return differ


def differences(table: TablePlan, parts: Sequence[Mapping[bytes, bytes]], rows: Sequence[tuple[Any, Any]]) -> list[str]:
    """`parts`: of each partition its changelog's last word on each key; `rows`: (key, value) as the views show them.

    Where rows lie where their events are, a key may have one in each partition, and all of them are shown.
    """
    stored = [(key, raw) for part in parts for key, raw in part.items()]
    if table.merge is not None:
        whole: dict[bytes, Any] = {}
        for key, raw in stored:
            value = table.value.decode(raw)
            whole[key] = table.merge(whole[key], value) if key in whole else value
        stored = [(key, table.value.encode(value)) for key, value in whole.items()]
    elif table.keyed:
        stored = list(dict(stored).items())
    expected = _by_key((_key(table, key), shown_value(table.value, raw)) for key, raw in stored)
    shown = _by_key(rows)
    wrong = sorted(key for key in expected.keys() | shown.keys() if expected.get(key) != shown.get(key))
    differ = [
        f"{Law.FOLD}: {table.name}[{key}] is shown as {shown.get(key, 'absent'):.120}, the changelog says "
        f"{expected.get(key, 'absent'):.120}"
        for key in wrong[:SHOWN]
    ]
    if len(wrong) > SHOWN:
        differ.append(f"{Law.FOLD}: {len(wrong) - SHOWN:,} more rows of {table.name} differ from the changelog")
    return differ


def _key(table: TablePlan, raw: bytes) -> Any:
    """As the views show it; an App's codecs may write more than the key's own text."""
    try:
        return shown_key(table.key.decode(raw))
    except (SemelError, TypeError):
        return shown_key(raw)


def _by_key(rows: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """Key -> its rows as JSON, in order."""
    by_key: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in rows:
        by_key[key if isinstance(key, str) else json.dumps(key)].append(json.dumps(value, sort_keys=True))
    return {key: " and ".join(sorted(values)) for key, values in by_key.items()}
