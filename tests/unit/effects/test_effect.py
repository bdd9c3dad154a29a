"""Keys, payloads and outcomes of effects."""

from __future__ import annotations

from uuid import UUID

import pytest

from semel.effects.effect import OUTCOME_BYTES_MAX, EffectKey, effect, outcome
from semel.errors import HandlingError


def test_a_digest_is_the_same_in_every_version() -> None:
    assert EffectKey("app", "charge", b"o1", b"e").digest.hex() == (
        "c4c15dc6231ebbeb471fc92b55572ef59dda51665f97aa85ac3caf022699c675"
    )


def test_no_two_keys_run_into_each_other() -> None:
    keys = [
        EffectKey("a", "b", b"c"), EffectKey("ab", "", b"c"), EffectKey("", "ab", b"c"), EffectKey("a", "bc", b""),
        EffectKey("a", "b", b"c", b"d"), EffectKey("a", "b", b"cd"),
    ]  # fmt: skip
    assert len({key.digest for key in keys}) == len(keys)
    assert all(-(1 << 63) <= key.lock < 1 << 63 for key in keys)


def test_keys_of_different_types_are_different() -> None:
    ids = [effect(key, 1).key.id for key in ("5", b"5", 5, ["5"], UUID(int=5))]
    assert len(set(ids)) == len(ids)


def test_a_payload_is_what_it_says_and_not_how_it_is_written() -> None:
    assert effect("k", {"a": 1, "b": [2]}).payload == effect("k", {"b": [2], "a": 1}).payload
    assert effect("k", {"a": 1}).payload != effect("k", {"a": "1"}).payload
    assert effect("k", None).payload != effect("k", 0).payload


@pytest.mark.parametrize("key", [None, "", b"", []])
def test_no_key_is_refused(key: object) -> None:
    with pytest.raises(HandlingError, match="is no key of an effect"):
        effect(key, 1)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(HandlingError, match="the payload of effect 'k' cannot be compared"):
        effect("k", object())
    with pytest.raises(HandlingError, match=r"the key .* of an effect is no str"):
        effect(["a", lambda: 1], 1)
    with pytest.raises(HandlingError, match=r"step=.* is no str"):
        effect("k", 1, step="x" * 201)


def test_an_outcome_is_json_of_a_bounded_size() -> None:
    assert outcome({"id": 5}).value == {"id": 5}
    assert outcome(None) == (None, "")
    assert "is no JSON" in outcome(object()).refused
    assert f"{OUTCOME_BYTES_MAX} can be kept" in outcome("x" * OUTCOME_BYTES_MAX).refused


def test_a_key_reads_as_a_person_would_name_it() -> None:
    assert str(EffectKey("app", "charge", b"o1")) == "app/charge 'o1'"
    assert str(EffectKey("", "", b"\xff\x00", b"\x01")) == "'ff00', edited to 01"
