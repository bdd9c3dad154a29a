"""What a record says of itself that comes back from the dead letters is believed only as far as the tool writes it."""

from __future__ import annotations

import pytest

from semel.state import replay
from semel.state.replay import MOST_REVISIONS, Replay


@pytest.mark.parametrize("raw", [b"1", b"9", b"10", b"63"])
def test_a_revision_is_read_as_it_was_written(raw: bytes) -> None:
    assert replay.of([("trace", b"t"), ("semel.replay", raw)]) == Replay(int(raw))
    assert replay.of([("semel.replay", raw), ("semel.edited", b"x")]) == Replay(int(raw), edited=True)


@pytest.mark.parametrize(
    "raw", [None, b"", b"0", b"01", b"-1", b"+1", b"1.0", b" 1", b"one", "\u0661".encode(), b"64", b"9" * 400, b"\xff"]
)
def test_a_header_that_the_tool_did_not_write_makes_no_replay(raw: bytes | None) -> None:
    assert replay.of([("semel.replay", raw), ("semel.edited", b"x")]) is None
    assert replay.revision_of([("semel.replay", raw)]) == 0


def test_a_mark_has_room_for_every_revision() -> None:
    from semel.state.dedup_marks import DEAD, Mark, unpack

    assert unpack(Mark(0, 0, 0, 0, DEAD, MOST_REVISIONS).pack()).revision == MOST_REVISIONS


def test_its_headers_are_taken_off_and_no_others() -> None:
    assert replay.without([("a", b""), ("semel.replay", b"1"), ("semel.letter", b"x"), ("semel.edited", None), ("b", None)]) == [
        ("a", b""), ("b", None)
    ]  # fmt: skip
