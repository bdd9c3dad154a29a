"""What a run's report says of its dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from semel.chaos import verdict
from semel.chaos.events import NOT_JSON
from semel.chaos.fleet import Fleet
from semel.port import TP
from semel.stages.agent.odd_code import ON_PURPOSE


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
    ]

    class Logs:
        def __init__(self, *_: object) -> None:
            pass

        async def records(self, topic: str) -> AsyncIterator[Any]:
            for one in letters:
                yield TP(topic, 0), one

    monkeypatch.setattr(verdict, "Logs", Logs)
    on = cast("Fleet", SimpleNamespace(broker=None, plan=SimpleNamespace(dead_letter_topic="p.dlq")))
    found = await verdict._given_up(on)
    assert found.originals == 3
    [finding] = found.findings
    assert "given up were p.dlq[0]@4 after" in finding
