"""What the views make of a stored row."""

from __future__ import annotations

import pytest

from semel.codec import codec_for
from semel.plan import TablePlan
from semel.runtime.view import _plain

LARGE = [2**64 + 8, -(2**63) - 1, 10**30]


def plan_of(kind: type) -> TablePlan:
    return TablePlan(name="t", key=codec_for(str), value=codec_for(kind))


@pytest.mark.parametrize("number", LARGE)
def test_an_integer_beyond_64_bits_is_shown_exactly(number: int) -> None:
    assert _plain(plan_of(int), codec_for(int).encode(number)) == number
    assert _plain(plan_of(dict), codec_for(dict).encode({"n": number})) == {"n": number}
