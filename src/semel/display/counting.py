"""Counting: numbers with what they count."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """`1 letter`, `2,000 letters`; `many` where an s does not do."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
