"""The rows that workers show at the end of a run, held against the changelogs: what a crash left in a store must be that.

The proof reads topics only; this looks at what the workers restored and went on with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from semel.codec import Codec
from semel.errors import SemelError
from semel.local.views import Views
from semel.plan import Plan, TablePlan
from semel.port import TP, Broker
from semel.proof import Law
from semel.proof.logs import Logs
from semel.runtime.clock import SystemClock

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
    if table.keyed or table.merge is not None:
        folded = list(_merged(table, parts).items())
    else:
        folded = [(key, _plain(table.value, raw)) for part in parts for key, raw in part.items()]
    expected = _by_key((_text(table, key), value) for key, value in folded)
    shown = _by_key((_text_of(key), value) for key, value in rows)
    wrong = sorted(key for key in expected.keys() | shown.keys() if expected.get(key) != shown.get(key))
    differ = [
        f"{Law.FOLD.value}: {table.name}[{key}] is shown as {_row(shown, key)}, the changelog says {_row(expected, key)}"
        for key in wrong[:SHOWN]
    ]
    if len(wrong) > SHOWN:
        differ.append(f"{Law.FOLD.value}: {len(wrong) - SHOWN:,} more rows of {table.name} differ from the changelog")
    return differ


def _merged(table: TablePlan, parts: Sequence[Mapping[bytes, bytes]]) -> dict[bytes, Any]:
    whole: dict[bytes, Any] = {}
    for part in parts:
        for key, raw in part.items():
            value = table.value.decode(raw)
            whole[key] = table.merge(whole[key], value) if table.merge is not None and key in whole else value
    return {key: _plain(table.value, table.value.encode(value)) for key, value in whole.items()}


def _by_key(rows: Iterable[tuple[str, Any]]) -> dict[str, list[str]]:
    """Key -> its rows as JSON, in order."""
    by_key: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in rows:
        by_key[key].append(orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode())
    return {key: sorted(values) for key, values in by_key.items()}


def _row(rows: Mapping[str, Sequence[str]], key: str) -> str:
    return f"{' and '.join(rows[key]):.120}" if key in rows else "absent"


# -- as the views show it


def _plain(codec: Codec[Any], raw: bytes) -> Any:
    if codec.type is str:
        return raw.decode()
    try:
        return raw.decode() if codec.type is bytes else orjson.loads(raw)
    except ValueError:
        return raw.hex()


def _text(table: TablePlan, key: bytes) -> str:
    """An App's codecs may write more than the key's own text."""
    if table.key.type not in (str, bytes):
        try:
            return _text_of(table.key.decode(key))
        except (SemelError, TypeError):
            pass
    return key.decode(errors="backslashreplace")


def _text_of(key: Any) -> str:
    return key if isinstance(key, str) else orjson.dumps(key).decode()
