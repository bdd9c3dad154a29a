"""Models of pydantic as values: read and checked by it, written so that they come back."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from semel import Dedup, Pipeline, Topic
from semel.codec import codec_for, fields_of, topic_codec
from semel.errors import DeclarationError, DecodeError
from semel.testing import PipelineTester


class Payment(BaseModel):
    id: str
    amount: float = Field(alias="sum")
    note: str | None = None


class Opened(BaseModel):
    kind: Literal["opened"] = "opened"
    id: str


class Closed(BaseModel):
    kind: Literal["closed"] = "closed"
    id: str


def test_a_model_is_written_under_its_aliases_and_comes_back() -> None:
    codec = codec_for(Payment)
    value = Payment(id="1", sum=2.5)
    raw = codec.encode(value)
    assert raw == b'{"id":"1","sum":2.5,"note":null}'
    assert codec.decode(raw) == value
    assert not codec.immutable


def test_what_is_wrong_with_a_value_is_one_line() -> None:
    with pytest.raises(DecodeError) as refused:
        codec_for(Payment).decode(b'{"id":5}')
    assert str(refused.value) == "not of type Payment: id: Input should be a valid string; sum: Field required"
    with pytest.raises(DecodeError, match="schema registry"):
        codec_for(Payment).decode(b"\x00\x00\x00\x00\x07{}")


@pytest.mark.parametrize("odd", [math.nan, math.inf, "text"])
def test_a_value_that_would_not_come_back_is_not_written(odd: Any) -> None:
    value = Payment.model_construct(id="1", amount=odd)
    with pytest.raises(TypeError):
        codec_for(Payment).encode(value)
    with pytest.raises(TypeError, match="expected Payment, got dict"):
        codec_for(Payment).encode({"id": "1"})


def test_a_union_of_models_is_told_apart_and_none_is_a_tombstone() -> None:
    codec = topic_codec(Opened | Closed | None)
    for value in (Opened(id="1"), Closed(id="1")):
        assert codec.decode(codec.encode(value)) == value
    assert codec.nullable
    with pytest.raises(DeclarationError, match="union of models alone"):
        codec_for(Opened | int)


def test_a_pipeline_takes_models_and_knows_their_fields() -> None:
    assert fields_of(Payment) == ["id", "amount", "note"]
    topic = Topic("payments", value=Payment)
    with pytest.raises(DeclarationError, match="did you mean 'id'"):
        Pipeline("p", source=topic, agent=lambda p: p, dedup=Dedup("idd", window=timedelta(days=1)))
    pipeline = Pipeline(
        "p",
        source=topic,
        agent=lambda p: p,
        sink=Topic("out", value=Payment),
        dedup=Dedup("id", window=timedelta(days=1)),
    )
    with PipelineTester(pipeline) as tester:
        tester.send(Payment(id="1", sum=1), key="k")
        tester.send(b'{"id":5}', key="k")
        assert [record.value for record in tester.outputs()] == [Payment(id="1", sum=1)]
        assert [(d.reason, d.value) for d in tester.dead_letters()] == [("undecodable", b'{"id":5}')]
