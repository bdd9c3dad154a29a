"""Headers that nobody of ours wrote: whatever stands in them is a finding or nothing, never a traceback."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from semel.port import TP
from semel.proof import Law, Verdict
from semel.state import lineage
from tests.unit.harness import APP
from tests.unit.proof.rig import LETTERS, SINK, SOURCE, History

Histories = Callable[..., History]

FORGED = [
    b"", b"payments", b"\xff\xfe/payments/0/1/0/x",
    *(f"{APP}/{SOURCE}/0/{rest}".encode() for rest in (
        "1", "abc/0/x", "-5/0/x", "5/-1/x", "5/x/x", "9999999999999999999999/0/x", "5/9999999999999/x", "5", "/0/x",
    )),
]  # fmt: skip


@pytest.mark.parametrize("value", FORGED)
async def test_an_output_with_a_lineage_that_semel_does_not_write_is_a_strangers(
    histories: Histories, value: bytes
) -> None:
    history = await histories(seed=3).filled()
    [_, record] = history.entries(SINK)[0]
    for _ in range(2):
        history.append(SINK, 0, record, headers=[(lineage.HEADER, value)])
    proof = await history.proof()
    assert (proof.verdict, dict(proof.by_law)) == (Verdict.VIOLATED, {Law.CONSERVATION: 1})
    assert proof.counts["without_lineage"] == 2


@pytest.mark.parametrize("name", ["semel.partition", "semel.offset", "semel.topic"])
@pytest.mark.parametrize("value", [b"x", b"", b"-1", b"\xff", b"99999999999999999999999"])
async def test_a_dead_letter_with_headers_that_semel_does_not_write_raises_nothing(
    histories: Histories, name: str, value: bytes
) -> None:
    history = await histories(seed=3).filled()
    [_, record] = history.entries(LETTERS)[0]
    headers = [(n, value if n == name else v) for n, v in record.headers]
    history.append(LETTERS, 0, record, headers=headers)
    await history.proof()


@pytest.mark.parametrize("name", ["semel.held", "semel.left_out", "semel.offset", "semel.pipeline"])
async def test_a_dead_event_that_had_headers_named_as_ours_is_not_lost(histories: Histories, name: str) -> None:
    history = histories(seed=3)
    # As one that was copied out of a topic of dead letters.
    history.world.cluster.write(TP(SOURCE, 0), [(b"a1", b"not json")], headers=[(name, b"1")])
    await history.filled(5)
    assert [name for _, r in history.entries(LETTERS) for n, v in r.headers if (n, v) == (name, b"1")] == [name]
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
