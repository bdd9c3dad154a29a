"""Loop usage: how long an agent's code has held the event loop, told step by step."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from semel.port import Clock
from semel.stages.agent.turns import HELD_S, LoopUsage


class Hands:
    """A clock that a test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def usage() -> tuple[LoopUsage, Any]:
    hands = Hands()
    return LoopUsage(cast("Clock", hands)), hands


def test_steps_that_let_go_soon_owe_nothing() -> None:
    use, clock = usage()
    for _ in range(100):
        use.begin_step()
        clock.now += HELD_S
        assert use.look() == 0
        use.end_step(within_event=False)
    assert use.pay() == 0


def test_what_held_the_loop_is_owed_until_it_is_paid() -> None:
    use, clock = usage()
    for _ in range(2):
        use.begin_step()
        clock.now += 1.0
        assert use.look() == 1.0
        use.end_step(within_event=False)
    assert use.pay() == 2.0
    assert use.pay() == 0


def test_a_step_that_was_looked_at_is_held_against_the_agent_once() -> None:
    use, clock = usage()
    use.begin_step()
    clock.now += 1.0
    assert use.look() == 1.0
    assert use.look() == 0
    assert use.held_s == 1.0


def test_between_steps_there_is_nothing_to_look_at() -> None:
    use, clock = usage()
    use.begin_step()
    use.end_step(within_event=False)
    clock.now += 1.0
    assert use.look() == 0
    assert use.stepped_at is None


async def test_an_event_that_awaits_without_anybody_holding_the_loop_owes_nothing() -> None:
    use, _ = usage()
    use.begin_step()
    use.end_step(within_event=True)
    await asyncio.sleep(1)
    assert use.begin_step() == 0
    assert use.pay() == 0
