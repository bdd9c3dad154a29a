"""Read ahead: whether an iterator is made for something that takes several of its items before it gives one, or looks at the next
one: then where the iterator stands says nothing of what is done with an item.
"""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType

# Of itertools, more_itertools and toolz. What is called otherwise is taken for one that goes item by item, as zip, enumerate
# and map do.
_NAMES = frozenset(
    ("batched", "chunked", "chunked_even", "collate", "divide", "distribute", "groupby", "grouper", "ichunked", "pairwise",
     "partition", "partition_all", "peekable", "seekable", "sliding_window", "split_after", "split_before", "split_into",
     "split_when", "spy", "stagger", "tee", "windowed")
)  # fmt: skip


def reads_ahead(frame: FrameType | None) -> bool:
    """`frame`: of the code that asks for the iterator, by a loop or by a call that does. False where no source shows it."""
    return frame is not None and _calls_one(frame.f_code, frame.f_lasti)


@lru_cache(maxsize=256)
def _calls_one(code: CodeType, at: int) -> bool:
    first, last, begin, end = next(islice(code.co_positions(), at // 2, None), (None,) * 4)
    if first is None or last is None or begin is None or end is None:
        return False
    lines = [linecache.getline(code.co_filename, number).encode() for number in range(first, last + 1)]
    # Cut at the end first: it may be the same line.
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][begin:]
    try:
        node = ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
    except (SyntaxError, ValueError):
        return False
    if not isinstance(node, ast.Call):
        return False
    return (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")) in _NAMES
