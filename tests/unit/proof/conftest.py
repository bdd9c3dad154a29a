"""Every test here runs in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from semel.testing.clock import VirtualLoop
from tests.unit.proof.rig import History


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualLoop}


@pytest.fixture
async def histories(tmp_path: Path) -> AsyncIterator[Callable[..., History]]:
    """Makes histories: worlds that workers run in, to be proven, or spoiled and proven."""
    made: list[History] = []

    def make(**options: object) -> History:
        made.append(History(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for history in made:
        await history.world.close()
