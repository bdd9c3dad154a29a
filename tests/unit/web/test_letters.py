from __future__ import annotations

import asyncio

import pytest

from semel.errors import ConfigError
from semel.memory.broker import MemoryBroker
from semel.web.letters import LetterDesk
from tests.unit.dead_letters.shelf import Shelf


class Refusing(MemoryBroker):
    """Does not come up the first time."""

    left = 1
    closed = 0

    async def start(self) -> None:
        if Refusing.left:
            Refusing.left -= 1
            raise ConfigError("no such broker")
        await super().start()

    async def close(self) -> None:
        Refusing.closed += 1
        await super().close()


async def test_nobody_who_does_not_ask_costs_a_connection_and_all_who_do_share_one() -> None:
    shelf = Shelf()
    made: list[MemoryBroker] = []

    def connect() -> MemoryBroker:
        made.append(shelf.connection())
        return made[-1]

    desk = LetterDesk(connect, shelf.clock, shelf.plan, shelf.settings)
    assert made == []
    shelf.put()
    first, second = await asyncio.gather(desk.catalogue(), desk.catalogue())
    assert first is second and first.index.open == 1
    assert len(made) == 1
    await desk.close()


async def test_a_connection_that_does_not_come_up_is_closed_and_made_anew_by_the_next_who_asks() -> None:
    shelf = Shelf()
    desk = LetterDesk(lambda: Refusing(shelf.cluster, "c"), shelf.clock, shelf.plan, shelf.settings)
    with pytest.raises(ConfigError):
        await desk.catalogue()
    assert Refusing.closed == 1
    shelf.put()
    assert (await desk.catalogue()).index.open == 1
    await desk.close()


async def test_a_desk_that_nobody_came_to_closes() -> None:
    shelf = Shelf()
    await LetterDesk(shelf.connection, shelf.clock, shelf.plan, shelf.settings).close()
