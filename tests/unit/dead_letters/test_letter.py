"""A letter read back: what stands in it."""

from __future__ import annotations

import pytest

from semel.dead_letters.letter import mentions
from tests.unit.dead_letters.letters import letter


@pytest.mark.parametrize(
    ("text", "found"),
    [("\udcff\udc80", True), ("\udc80\udcff", False), ("account", True), ("trace", True), ("a\u00e4", False)],
)
def test_what_is_looked_for_is_bytes_also_where_they_are_no_text(text: str, found: bool) -> None:
    assert mentions(letter(value=b"a\xff\x80"), text) == found
