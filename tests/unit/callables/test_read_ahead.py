"""Whether an iterator is made for something that reads ahead of what it gives."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise
from typing import Any

import pytest

from semel.callables.read_ahead import reads_ahead


class Asked:
    """Knows what it was asked for an iterator by."""

    ahead: bool | None = None

    def __iter__(self) -> Iterator[int]:
        self.ahead = reads_ahead(sys._getframe(1))
        return iter((1, 2, 3))


def chunked(items: Iterable[Any], n: int) -> list[Any]:
    return [*iter(items)][:n]


AHEAD: list[Callable[[Any], Any]] = [
    lambda batch: [key for key, _ in groupby(batch)],
    lambda batch: [key for key, _ in itertools.groupby(batch, key=lambda item: item % 2)],
    lambda batch: list(pairwise(batch)),
    lambda batch: itertools.tee(
        batch, 2
    ),
    lambda batch: [(name, n) for name, n in zip("é", itertools.pairwise(batch))],  # noqa: B905
]  # fmt: skip
ONE_BY_ONE: list[Callable[[Any], Any]] = [
    lambda batch: [item for item in batch],  # noqa: C416
    lambda batch: [(n, item) for n, item in enumerate(batch)],
    lambda batch: list(zip(batch, batch, strict=True)),
    lambda batch: list(map(str, batch)),
    sum,
    lambda batch: list(groupby(sorted(batch))),
    lambda batch: (item for item in batch),
    lambda batch: list(itertools.chain(batch)),
]


@pytest.mark.parametrize("use", AHEAD)
def test_what_takes_several_before_it_gives_one_reads_ahead(use: Callable[[Any], Any]) -> None:
    batch = Asked()
    use(batch)
    assert batch.ahead is True


@pytest.mark.parametrize("use", ONE_BY_ONE)
def test_a_loop_and_what_goes_item_by_item_does_not(use: Callable[[Any], Any]) -> None:
    batch = Asked()
    use(batch)
    assert batch.ahead is False


def test_a_loop_statement_is_told_by_its_place_and_not_by_names_beside_it() -> None:
    batch = Asked()
    for groupby in batch:  # noqa: F402
        assert groupby
    assert batch.ahead is False


def test_code_without_source_is_taken_for_one_by_one() -> None:
    batch = Asked()
    exec("list(pairwise(batch))", {"pairwise": pairwise, "batch": batch})
    assert batch.ahead is False
    assert not reads_ahead(None)
