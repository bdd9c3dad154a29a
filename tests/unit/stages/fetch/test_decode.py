"""Records become values; one that does not fit takes no other with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from semel.codec import Codec, codec_for, topic_codec
from semel.errors import DecodeError
from semel.port import TooLarge
from semel.stages.fetch.decode import Undecodable, decoder


class Given(NamedTuple):
    value: bytes | None
    offset: int = 0
    timestamp: int = 0
    key: bytes | None = None
    headers: tuple[()] = ()


@dataclass
class Payment:
    id: str


def decoded(declared: Any, *values: bytes | None) -> list[Any]:
    return decoder(codec_for(declared))([Given(v) for v in values])


def test_values_come_in_the_order_of_their_records() -> None:
    assert decoded(int, b"1", b"2", b"3") == [1, 2, 3]
    assert decoded(bytes, b"", b"x") == [b"", b"x"]
    assert decoded(Payment, b'{"id":"a"}') == [Payment("a")]
    assert decoded(int) == []


@pytest.mark.parametrize("declared", [bytes, str, int, dict, Payment])
def test_a_null_value_is_undecodable_and_says_so(declared: Any) -> None:
    (found,) = decoded(declared, None)
    assert isinstance(found, Undecodable)
    assert isinstance(found.error, DecodeError)
    assert "the value is null" in str(found.error)


def test_one_that_does_not_fit_stands_alone_among_those_that_do() -> None:
    found = decoded(Payment, b'{"id":"a"}', b"\xff", None, b'{"id":5}', b'{"id":"b"}')
    assert [type(f) for f in found] == [Payment, Undecodable, Undecodable, Undecodable, Payment]
    assert "id" in str(found[3].error)


def test_whatever_a_converter_raises_is_undecodable() -> None:
    def broken(raw: bytes) -> int:
        return 1 // len(raw)

    codec: Codec[int] = Codec(int, lambda v: b"", broken, True)
    one, none = decoder(codec)([Given(b"x"), Given(b"")])
    assert one == 1
    assert isinstance(none, Undecodable)
    assert "ZeroDivisionError" in str(none.error)


@pytest.mark.parametrize("beside", [[], [b'{"id":"a"}'], [b"\xff"], [b'{"id":"a"}', b"\xff", None]])
def test_a_record_without_a_value_is_none_where_the_topic_says_so_whatever_was_fetched_beside_it(
    beside: list[bytes | None],
) -> None:
    decode = decoder(topic_codec(Payment | None))
    found = decode([Given(None), *map(Given, beside), Given(None)])
    assert (found[0], found[-1]) == (None, None)


@pytest.mark.parametrize("beside", [[], [b"1"], [b"\xff"]])
def test_a_codec_that_would_take_anything_gets_no_record_without_a_value(beside: list[bytes | None]) -> None:
    taken: list[Any] = []

    def takes_all(raw: Any) -> int:
        taken.append(raw)
        return 7

    found = decoder(Codec(int, lambda v: b"", takes_all, True))([Given(None), *map(Given, beside)])
    assert isinstance(found[0], Undecodable)
    assert "a tombstone" in str(found[0].error)
    assert "value=int | None" in str(found[0].error)
    assert None not in taken


@pytest.mark.parametrize("declared", [Payment, Payment | None, bytes | None])
def test_a_record_that_was_too_large_to_be_read_is_no_tombstone(declared: Any) -> None:
    [found] = decoder(topic_codec(declared))([TooLarge(7, 0, "its batch is larger than 32 MiB")])
    assert isinstance(found, Undecodable)
    assert "larger than 32 MiB" in str(found.error)
