"""What a type's values look like: the same in every process, and compared where it says something."""

from __future__ import annotations

import ast
import gc
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from semel.codec import codec_for
from semel.schema.fingerprint import describe, differences, fingerprint

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
stream = semel.Topic("in", value=dict)
plan = semel.Pipeline("p", source=stream, agent=agent, kind="stream", tables=tables, dedup=dedup).plan()
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


# -- functions

FUNCTIONS = """
LIMIT = 10
def named(value, *, of: int = 3):
    def inner(): return f"{value!r:>{LIMIT}}", value["a"]
    return (inner(), u"\u00e9", None)
pair = dict(key=lambda v: v["id"], compare=lambda v: (v["a"], [x for x in v["b"]]))
both = [
    (lambda v: v["a"]), (lambda w: (lambda v: v["a"])(w)),
]
def closed(n):
    return lambda v: v > n
class Rule:
    @staticmethod
    def of(v): return v
"""


KNOWN = [
    "848d29a3f52073c0", "77f1c17da777d186", "a02f88f7b348acb9", "2e685f8ff9c7eb18",
    "7a7adf2a83808814", "38bc5d3f57137026", "82ecfc006d5a2be2", "3e50f7adc83097f9",
]  # fmt: skip


def module(path: Path, text: str) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def functions(m: ModuleType) -> list[Any]:
    return [m.named, m.pair["key"], m.pair["compare"], *m.both, m.closed(1), m.closed(2), m.Rule.of]


def test_a_function_is_known_by_what_it_says_whatever_its_layout_its_module_and_its_python(tmp_path: Path) -> None:
    before = [fingerprint(f) for f in functions(module(tmp_path / "one.py", FUNCTIONS))]
    assert len(set(before)) == len(before)
    laid_out = FUNCTIONS.replace("LIMIT = 10", "import sys\n\nLIMIT = 99").replace(", compare", ",\n    compare")
    assert [
        fingerprint(f) for f in functions(module(tmp_path / "two.py", laid_out.replace("None)", "None,  # so\n    )")))
    ] == before
    # As every version of Python that this runs on says it.
    assert before == KNOWN


def test_what_a_function_says_is_compared(tmp_path: Path) -> None:
    before = functions(module(tmp_path / "one.py", FUNCTIONS))
    after = functions(
        module(tmp_path / "two.py", FUNCTIONS.replace('"a"', '"z"').replace("return v\n", "return [v]\n"))
    )
    same = [fingerprint(a) == fingerprint(b) for a, b in zip(before, after, strict=True)]
    assert same == [False, True, False, False, False, True, True, False]


def test_a_function_whose_source_is_not_to_be_had_is_known_by_what_was_compiled() -> None:
    made: dict[str, Any] = {}
    exec("a = lambda v: v.id; b = lambda v: v.id; c = lambda v: v.at", made)
    assert fingerprint(made["a"]) == fingerprint(made["b"]) != fingerprint(made["c"])
    assert fingerprint(len) == fingerprint(None) == ""


def test_what_is_collected_while_a_function_is_read_may_show_a_traceback() -> None:
    """Of which Python 3.11 parses lines itself."""

    class Task:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ast.parse("one + two")

    known, before = fingerprint(describe), gc.get_threshold()
    try:
        for threshold in range(250, 5_000, 250):
            gc.collect()
            Task()
            gc.set_threshold(threshold)
            assert fingerprint(describe) == known
    finally:
        gc.set_threshold(*before)
