"""Numbers with what they count."""

from __future__ import annotations

from semel.display.counting import counted


def test_one_is_singular_and_no_other_number_is() -> None:
    assert [counted(n, "letter") for n in (0, 1, 2, 2_000)] == ["0 letters", "1 letter", "2 letters", "2,000 letters"]
    assert (counted(1, "entry", "entries"), counted(3, "entry", "entries")) == ("1 entry", "3 entries")
