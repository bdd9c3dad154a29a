"""Stores of another life than their logs: the three ways in which the engine can tell, and must rebuild (protocol rule 18).

Each leaves a row that nothing made, and balances that are wrong: whoever goes on from there is found out.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import orjson

from semel.memory.cluster import MemoryCluster
from semel.port import TP
from semel.state import positions
from semel.state.store import row_prefix
from tests.simulation.store_model import META, ROWS, Disk, meta_key, table_numbers

GHOST = b"ghost"
ROW = b"1000000"


class Lie(Enum):
    OLD = "too old"
    AHEAD = "beyond the end of its log"
    FOREIGN = "of another writer than its log"


LIES = (Lie.OLD, Lie.AHEAD, Lie.FOREIGN)


def can_lie(disk: Disk, cluster: MemoryCluster, app: str, partition: int, kind: Lie) -> bool:
    """Whether the store has that partition, and its logs what tells the lie."""
    meta = _meta(disk, partition)
    if meta is None or meta["position"] is None or f"{app}-balances-changelog" not in meta["logs"]:
        return False
    match kind:
        case Lie.OLD:
            return bool(cluster.log(TP(f"{app}-balances-changelog", partition)).committed())
        case Lie.AHEAD:
            return True
        case Lie.FOREIGN:
            log = cluster.log(TP(f"{app}-positions", partition)).committed()
            return any(r.offset == meta["stamp"] and r.key == positions.KEY for r in log)


def lie(disk: Disk, cluster: MemoryCluster, app: str, partition: int, kind: Lie) -> None:
    meta = _meta(disk, partition)
    assert meta is not None
    changelog = f"{app}-balances-changelog"
    match kind:
        case Lie.OLD:
            # As if it had slept through a tombstone, and the tombstone's end.
            meta["at"] = 0
            meta["logs"][changelog]["next"] = cluster.log(TP(changelog, partition)).log_start
        case Lie.AHEAD:
            meta["logs"][changelog]["next"] += 1_000_000
        case Lie.FOREIGN:
            meta["position"]["writer"] = "somebody"
    prefix = row_prefix(partition, table_numbers(disk)["balances"])
    wrong = {key for key in disk.families[ROWS] if key.startswith(prefix)} | {prefix + GHOST}
    disk.apply([(META, meta_key(partition), orjson.dumps(meta)), *((ROWS, key, ROW) for key in sorted(wrong))])


def _meta(disk: Disk, partition: int) -> dict[str, Any] | None:
    found = disk.families[META].get(meta_key(partition))
    return None if found is None else orjson.loads(found)
