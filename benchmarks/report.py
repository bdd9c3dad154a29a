"""What a benchmark says: one JSON document on standard output, one line for people on standard error."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from math import ceil
from statistics import median
from typing import Any, NoReturn

import orjson

from semel.local import jars


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "kafka": jars.NEWEST,
        **{name: version(name) for name in ("aiokafka", "faust-streaming", "rocksdict")},
    }


def load_average() -> float:
    """Of the last minute. It counts the benchmark's own last round too; far above that, somebody else was at work."""
    return round(os.getloadavg()[0], 2)


def medians(rounds: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """The median over the rounds of each named figure that every round has."""
    found: dict[str, Any] = {}
    for name in names:
        values = [r[name] for r in rounds]
        if values and all(isinstance(v, (int, float)) for v in values):
            found[name] = round(median(values), 2)
    return found


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed. `ordered` is sorted and not empty."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def finish(document: Mapping[str, Any], line: str) -> NoReturn:
    """Print both and end: exit code 1 where a round is void (`ok` false). Speed alone never fails."""
    say(line)
    whole = {**document, "machine": machine()}
    sys.stdout.write(orjson.dumps(whole, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()
    raise SystemExit(0 if document.get("ok", True) else 1)
