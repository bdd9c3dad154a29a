"""The thread that says what holds the event loop. In real time: threads know no other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from semel.stages.agent.watchdog import Watchdog


def runner(name: str, where: str, *, holding: bool = True) -> Any:
    return SimpleNamespace(
        plan=SimpleNamespace(name=name), context=SimpleNamespace(holding=holding), where=where, awaits=False
    )


def watched(runners: list[Any], work: Callable[[], None], *, task: str, session_timeout_ms: int = 10_000) -> Watchdog:
    """The work runs in a task of that name, on a loop that is watched; the watchdog is asked before the loop goes on."""

    async def main() -> Watchdog:
        dog = Watchdog(runners, session_timeout_ms=session_timeout_ms)
        dog.start()

        async def body() -> None:
            await asyncio.sleep(0.1)
            work()

        try:
            await asyncio.create_task(body(), name=task)
        finally:
            dog.stop()
        return dog

    return asyncio.run(main())


def test_what_blocks_is_said_while_it_does_with_agent_record_and_stack(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []

    def blocks() -> None:
        ends = time.monotonic() + 30
        while time.monotonic() < ends and not said:
            time.sleep(0.05)
            said.extend(r.getMessage() for r in caplog.records if r.name == "semel.watchdog")

    runners = [runner("other", "src[3]@7"), runner("settle", "src[0]@12 (key b'a')")]
    with caplog.at_level(logging.WARNING, "semel.watchdog"):
        watched(runners, blocks, task="agent settle")
    assert len(said) == 1
    assert said[0].startswith("agent settle at src[0]@12 (key b'a') has been holding the event loop for 1.")
    assert f"{__file__}:" in said[0]
    assert "(blocks)" in said[0]
    assert "time.sleep(0.05)" in said[0] or "said.extend" in said[0] or "while time" in said[0]
    assert "to_thread" in said[0]


def test_what_blocks_again_at_the_same_place_is_not_said_each_time(caplog: pytest.LogCaptureFixture) -> None:
    def blocks() -> None:
        time.sleep(1.6)

    async def main() -> None:
        dog = Watchdog([runner("settle", "src[0]@12")], session_timeout_ms=10_000)
        dog.start()
        for _ in range(2):
            blocks()
            await asyncio.sleep(0.6)
        dog.stop()

    with caplog.at_level(logging.WARNING, "semel.watchdog"):
        asyncio.run(main())
    assert len([r for r in caplog.records if r.name == "semel.watchdog"]) == 1


def test_past_the_session_the_price_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "semel.watchdog"):
        watched([runner("settle", "src[0]@12")], lambda: time.sleep(2), task="agent settle", session_timeout_ms=500)
    assert "longer than the session timeout (0.5 s)" in caplog.text
    assert "a failed attempt" in caplog.text


def test_what_is_no_agent_is_named_as_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "semel.watchdog"):
        watched([runner("settle", "src[0]@12")], lambda: time.sleep(2), task="my timer")
    assert "task 'my timer' (in hand: agent settle at src[0]@12) has been holding" in caplog.text


def hold(how: str) -> None:
    if how == "sleeping":
        time.sleep(2)
        return
    ends = time.thread_time() + 0.7
    while time.thread_time() < ends:
        pass


@pytest.mark.parametrize("how", ["sleeping", "computing"])
def test_code_that_holds_the_loop_is_told_from_a_process_that_was_stopped(how: str) -> None:
    found: list[bool] = []

    async def main() -> None:
        dog = Watchdog([], session_timeout_ms=10_000)
        dog.start()
        began = time.monotonic()
        hold(how)
        held_s = time.monotonic() - began
        # Nobody was seen to run in a time ten times as long: the rest of it, the process did not.
        found.extend([dog.awake(held_s if how == "sleeping" else 0.8), dog.awake(10 * held_s)])
        dog.stop()

    asyncio.run(main())
    assert found == [True, False]
