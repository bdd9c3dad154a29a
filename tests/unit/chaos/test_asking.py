"""What a run asks of brokers that come and go."""

from __future__ import annotations

import pytest

from semel.chaos import asking
from semel.errors import SemelError
from semel.port import RpcError, RpcLost


async def test_it_is_asked_until_it_is_done() -> None:
    answers: list[Exception | None] = [
        RpcLost("AlterConfigs", "the broker is away"),
        RpcError("AlterConfigs", 41),
        None,
    ]

    async def ask() -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    await asking.until_done("topic 'payments'", ask)
    assert not answers


async def test_brokers_that_never_come_to_it_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ASKED_S", -1.0)

    async def ask() -> None:
        raise RpcLost("AlterConfigs", "nobody answers")

    with pytest.raises(SemelError, match=r"topic .payments. could not be set .*nobody answers"):
        await asking.until_done("topic 'payments'", ask)
