"""What a run's report says of its dead letters, and of what it does not show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from semel.chaos import verdict
from semel.chaos.events import NOT_JSON
from semel.chaos.fleet import Fleet
from semel.chaos.report import NOT_COUNTED
from semel.chaos.timeline import Entry
from semel.chaos.verdict import conflict_remarks, void_reasons
from semel.port import TP
from semel.stages.agent.handler_faults import DOWN_ON_PURPOSE, ON_PURPOSE


def letter(reason: str, value: bytes = b"{}", error: str = "odd") -> Any:
    headers = (("semel.reason", reason.encode()), ("semel.error", error.encode()), ("semel.attempts", b"1"))
    return SimpleNamespace(offset=4, value=value, headers=headers)


async def test_given_up_are_events_that_were_meant_to_take_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [
        letter("failed"),
        letter("undecodable"),
        letter("undecodable", NOT_JSON),
        letter("conflict"),
        letter("duplicate"),
        letter("failed", error=ON_PURPOSE),
        letter("failed", error=DOWN_ON_PURPOSE),
    ]

    class Logs:
        def __init__(self, *_: object) -> None:
            pass

        async def records(self, topic: str) -> AsyncIterator[Any]:
            for one in letters:
                yield TP(topic, 0), one

    monkeypatch.setattr(verdict, "Logs", Logs)
    on = cast("Fleet", SimpleNamespace(broker=None, plan=SimpleNamespace(dead_letter_topic="p.dlq")))
    [finding], originals = await verdict._given_up(on)
    assert originals == 3
    assert "given up were p.dlq[0]@4 after" in finding


def counted(**counts: int) -> dict[str, int]:
    return NOT_COUNTED | counts


BITTEN = counted(assignments=9, duplicates=40, fences=1)


def entry(kind: str = "kill", *, bit: bool = True) -> Entry:
    return Entry(1, kind, kind, "w1", 1.0, 2.0, 3.5, bit, seen=kind == "kill")


def test_a_run_whose_faults_bit_is_not_void() -> None:
    assert void_reasons([entry()], BITTEN, starts=3, redelivered=50, deduped=True) == []


@pytest.mark.parametrize(
    ("entries", "engine", "redelivered", "says"),
    [
        ([], BITTEN, 50, "no fault took place"),
        ([entry(bit=False)], BITTEN, 50, "none of the 1 faults met anything"),
        ([entry(kind="net")], counted(assignments=3, duplicates=5), 50, "no rebalance, abort, fence or restart"),
        ([entry()], counted(assignments=9), 50, "none of 50 redelivered records"),
        ([entry()], BITTEN, 0, "no record was redelivered"),
    ],
)
def test_a_run_whose_faults_did_not_bite_is_void(
    entries: list[Entry], engine: dict[str, int], redelivered: int, says: str
) -> None:
    assert any(
        says in reason for reason in void_reasons(entries, engine, starts=3, redelivered=redelivered, deduped=True)
    )


@pytest.mark.parametrize(
    ("published", "sent", "met", "says"),
    [
        (5_000, 50, 0, "none of 50 records sent with another payload under a known id was met as a conflict"),
        (5_000, 0, 0, "no conflict could be sent, since nothing of these events can be altered"),
        (300, 0, 0, "no conflict was sent among 300 records; run it longer"),
    ],
)
def test_a_run_without_conflicts_says_that_it_shows_nothing_of_them(
    published: int, sent: int, met: int, says: str
) -> None:
    [remark] = conflict_remarks(published, sent, met)
    assert remark.startswith(f"this run says nothing of conflicts: {says}")


def test_a_run_whose_conflicts_were_met_has_nothing_to_say_of_them() -> None:
    assert conflict_remarks(5_000, 50, 49) == ()


def test_a_run_whose_records_are_given_up_is_void_and_says_what_to_give() -> None:
    def reasons(given_up: int) -> list[str]:
        return void_reasons(
            [entry()], BITTEN, starts=3, redelivered=50, deduped=True, taken_in=1_000, given_up=given_up
        )

    assert reasons(500) == []
    [reason] = reasons(501)
    assert reason.startswith("501 of 1,000 records became dead letters")
    assert "chaos_events(rng)" in reason
