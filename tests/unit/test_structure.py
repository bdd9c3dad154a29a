"""What a type's values look like: the same in every process, and compared where it says something."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest

from semel.codec import codec_for
from semel.structure import differences

DECLARED = """
import dataclasses, datetime, sys, typing, uuid
import faust, orjson, semel

class Unset: pass

@dataclasses.dataclass
class Row:
    n: int
    note: typing.Any = Unset()
    at: datetime.datetime = datetime.datetime.now()
    id: uuid.UUID = uuid.uuid4()
    tags: frozenset[str] = frozenset({"a", "b", "c", "d"})

class Record(faust.Record):
    id: str
    note: typing.Any = Unset()
    tags: typing.Any = frozenset({"a", "b", "c", "d"})

async def agent(stream): ...

tables = [semel.Table("rows", value=Row), semel.Table("records", value=Record)]
dedup = semel.Dedup(lambda event: event["a"] in {"a", "b", "c", "d"}, window=datetime.timedelta(1))
plan = semel.Pipeline("p", source=semel.Topic("in", value=dict), agent=agent, tables=tables, dedup=dedup).plan()
sys.stdout.write(plan.types())
"""


def test_a_declaration_is_described_alike_in_every_process() -> None:
    described = [
        subprocess.run(
            [sys.executable, "-c", DECLARED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert described[0] == described[1]
    assert b'"n":[' in described[0].replace(b" ", b"") and b"abcd" in described[0].translate(None, b'", ')


class Kind(Enum):
    ONE = 1
    TWO = 2


@dataclass
class Money:
    amount: int = 0


@pytest.mark.parametrize(
    ("type", "before", "now"),
    [(int, 0, 1), (Any, None, 0), (Decimal, Decimal(0), Decimal(1)), (Kind, Kind.ONE, Kind.TWO),
     (frozenset[str], frozenset({"a"}), frozenset({"b"})), (tuple[int, ...], (1,), (2,))],
)  # fmt: skip
def test_another_default_is_a_difference(type: Any, before: Any, now: Any) -> None:
    old, new, same = (codec_for(make_dataclass("Row", [("x", type, d)])).structure for d in (before, now, before))
    assert "the default of x" in differences(old, new)[0]
    assert differences(old, same) == []


def test_a_default_that_is_no_plain_value_is_not_compared() -> None:
    described = [codec_for(make_dataclass("Row", [("x", Any, d)])).structure for d in (object(), object(), 5)]
    assert [differences(a, b) for a in described for b in described] == [[]] * 9
