"""A field is set in the text of a JSON value, and each other character stays."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import orjson
import pytest

from semel.dead_letters import json_text
from semel.dead_letters.json_text import has_path, set_path

# What does not come through reading and writing it.
LONG = b' {"n" : 123456789012345678901234567890, "p":12345678901234567.89,"q": 0.10000000000000000555,"e":1e+2,"s":"\\u00e4\\/"'


@pytest.mark.parametrize(
    ("path", "given", "after"),
    [
        ("amount", "5", b'{"id":"1", "amount":5,"tags":[{"a":1}, 2]}'),
        ("new", '"x"', b'{"id":"1", "amount":-1,"tags":[{"a":1}, 2],"new":"x"}'),
        ("tags.0.a", "null", b'{"id":"1", "amount":-1,"tags":[{"a":null}, 2]}'),
        ("tags.0", "7", b'{"id":"1", "amount":-1,"tags":[7, 2]}'),
        ("tags.1", ' {"b": 1.50} ', b'{"id":"1", "amount":-1,"tags":[{"a":1}, {"b": 1.50}]}'),
        ('tags.0.\u00e4"', "1", '{"id":"1", "amount":-1,"tags":[{"a":1,"\u00e4\\"":1}, 2]}'.encode()),
    ],
)
def test_a_field_is_set_and_the_others_stay(path: str, given: str, after: bytes) -> None:
    assert set_path(b'{"id":"1", "amount":-1,"tags":[{"a":1}, 2]}', path, given) == after


def test_what_no_reader_holds_exactly_stays_as_it_was_written() -> None:
    assert set_path(LONG + b',"a":{ } }\n', "a.b", "1") == LONG + b',"a":{"b":1 } }\n'
    assert set_path(LONG + b',"r":1, "r":2,"a\\u0062":0}', "ab", "9" * 40) == LONG + b',"r":1, "r":2,"a\\u0062":%s}' % (
        b"9" * 40
    )
    assert set_path(b"{ }", "a", "1") == b'{"a":1 }'
    assert set_path(b'{"":{"":1}}', ".", "2") == b'{"":{"":2}}'


@pytest.mark.parametrize(
    ("value", "path", "given", "why"),
    [
        (b"{}", "a", "text", "no JSON"),
        (b"{}", "a", "\udcff", "no JSON"),
        (b"{}", "a.b", "1", "has no 'a'"),
        (b'{"a":[]}', "a.0", "1", "no place in a list of 0"),
        (b'{"a":[1]}', "a.-1", "1", "no place in a list of 1"),
        (b'{"a":1}', "a.b", "1", "nothing to set"),
        (b'{"a":1}', "a.b.c", "1", "has no 'b'"),
        (b'{"a":1,"\\u0061":2}', "a", "1", "has 'a', of 'a', 2 times"),
        (b'{"a":{},"a":{}}', "a.b", "1", "has 'a', of 'a.b', 2 times"),
        (b"1", "a", "1", "nothing to set"),
        (None, "a", "1", "nothing to set"),
        (b"no json", "a", "1", "the value is no JSON"),
        (b"\xff", "a", "1", "the value is no JSON"),
    ],
)
def test_what_cannot_be_set_is_refused(value: bytes | None, path: str, given: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        set_path(value, path, given)


def deep(depth: int) -> tuple[bytes, str]:
    return b'{"a":' * depth + b"1" + b"}" * depth, ".".join("a" * depth)


def test_a_field_deep_inside_a_value_is_found() -> None:
    value, path = deep(200)
    assert set_path(value, path, "2") == value.replace(b"1", b"2")


def test_a_value_that_is_too_deep_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    value, path = deep(1020)
    monkeypatch.setattr(json_text, "_DECODER", TooDeep())
    with pytest.raises(ValueError, match="nested too deeply"):
        set_path(value, path, "2")
    monkeypatch.undo()
    # How deep a decoder goes is the interpreter's to say.
    try:
        assert set_path(value, path, "2") == value.replace(b"1", b"2")
    except ValueError as refused:
        assert "nested too deeply" in str(refused)


class TooDeep:
    def raw_decode(self, text: str, at: int) -> Any:
        raise RecursionError


@pytest.mark.parametrize(
    ("path", "there"), [("amount", True), ("amout", False), ("lines.1.price", True), ("lines.1.prise", False)]
)
def test_a_field_that_is_there_is_told_from_one_that_would_be_put_in(path: str, there: bool) -> None:
    value = b' {"amount" : null, "lines":[{}, {"price":1}]}'
    assert has_path(value, path) is there
    assert has_path(set_path(value, path, "2"), path)


@pytest.mark.parametrize("seed", range(50))
def test_it_sets_what_reading_and_writing_would_set(seed: int) -> None:
    rng = random.Random(seed)

    def made(depth: int) -> Any:
        kind = rng.randrange(6) if depth else rng.randrange(4)
        if kind == 4:
            return [made(depth - 1) for _ in range(rng.randrange(4))]
        if kind == 5:
            return {
                "".join(rng.choices(string.printable + "\u00e4{", k=2)): made(depth - 1)
                for _ in range(rng.randrange(4))
            }
        return [rng.randrange(-9, 9), rng.random(), "".join(rng.choices('"\\,:{}[] \u20ac', k=4)), None][kind]

    value = {"a": made(4), "b": made(4)}
    text = json.dumps(value, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
    path, at = ["a"], value["a"]
    while at and isinstance(at, dict | list) and rng.random() < 0.9:
        step = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        if "." in str(step):
            break
        path, at = [*path, str(step)], at[step]
    holder: Any = value
    for step in path[:-1]:
        holder = holder[int(step) if isinstance(holder, list) else step]
    holder[int(path[-1]) if isinstance(holder, list) else path[-1]] = {"new": [1]}
    assert orjson.loads(set_path(text.encode(), ".".join(path), '{"new": [1]}')) == value
