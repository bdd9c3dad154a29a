"""The thread that keeps a worker's place in its group while the loop is held. In real time: threads know no other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from semel.codes import Code
from semel.port import Broker, Membership, RpcError, RpcLost
from semel.runtime.clock import SystemClock
from semel.worker.heartbeat_thread import HeartbeatThread

SESSION_MS = 240
MEMBERSHIP = Membership("payments", 5, "member-1", "payments-w1")


class Coordinator:
    """What the thread connects to. `answers`: one for each heartbeat, the last one for all that follow."""

    def __init__(self, *answers: BaseException | None) -> None:
        self.answers = answers or (None,)
        self.heartbeats: list[Membership] = []
        self.opened: list[int] = []
        self.closed = 0
        self.kept: list[tuple[Membership, float]] = []
        self.keep: Membership | None = MEMBERSHIP

    def connect(self) -> Broker:
        self.opened.append(threading.get_ident())
        return cast("Broker", self)

    async def heartbeat(self, membership: Membership) -> None:
        answer = self.answers[min(len(self.heartbeats), len(self.answers) - 1)]
        self.heartbeats.append(membership)
        if answer is not None:
            raise answer

    async def close(self) -> None:
        self.closed += 1


def held(coordinator: Coordinator, work: Callable[[], Any], *, max_block_ms: int = 60_000) -> None:
    """The work runs on a loop that has a thread, which is stopped when the loop has run again for a while."""

    async def main() -> None:
        thread = HeartbeatThread(
            coordinator.connect, SystemClock(), to_keep=lambda: coordinator.keep,
            kept=lambda membership, at: coordinator.kept.append((membership, at)),
            session_timeout_ms=SESSION_MS, max_block_ms=max_block_ms,
        )  # fmt: skip
        thread.start()
        try:
            await asyncio.sleep(0.1)
            work()
            # The last one may be on its way.
            await asyncio.sleep(0.1)
            sent = len(coordinator.heartbeats)
            await asyncio.sleep(0.2)
            assert len(coordinator.heartbeats) == sent
        finally:
            thread.stop()

    asyncio.run(main())


def sleep_s(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def until(holds: Callable[[], bool], within_s: float = 20.0) -> Callable[[], None]:
    """Holds the loop until then."""

    def wait() -> None:
        ends = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < ends, "it never came"
            time.sleep(0.01)

    return wait


def test_while_the_loop_runs_there_is_no_connection() -> None:
    coordinator = Coordinator()
    held(coordinator, lambda: None)
    assert not coordinator.opened


def test_a_held_loop_is_heartbeaten_for_by_another_thread_until_it_runs_again() -> None:
    coordinator, began = Coordinator(), time.monotonic()
    held(coordinator, until(lambda: len(coordinator.heartbeats) >= 8))
    assert set(coordinator.heartbeats) == {MEMBERSHIP}
    assert [membership for membership, _ in coordinator.kept] == coordinator.heartbeats
    asked = [at for _, at in coordinator.kept]
    assert asked == sorted(asked) and began < asked[0]
    assert coordinator.opened and threading.get_ident() not in coordinator.opened
    assert coordinator.closed == len(coordinator.opened)


def test_it_begins_while_most_of_the_session_is_left() -> None:
    coordinator, began = Coordinator(), time.monotonic()
    held(coordinator, until(lambda: bool(coordinator.kept)))
    assert coordinator.kept[0][1] - began < 0.1 + SESSION_MS / 1000 * 0.75


@pytest.mark.parametrize(
    "code",
    [Code.UNKNOWN_MEMBER_ID, Code.ILLEGAL_GENERATION, Code.FENCED_INSTANCE_ID, Code.GROUP_AUTHORIZATION_FAILED],
)
def test_a_place_that_the_group_refuses_is_left_for_the_loop_to_act_on(code: Code) -> None:
    coordinator = Coordinator(None, RpcError("Heartbeat", code))
    held(coordinator, sleep_s(0.6))
    assert len(coordinator.heartbeats) == 2 and len(coordinator.kept) == 1


@pytest.mark.parametrize(
    "passing", [RpcError("Heartbeat", Code.NOT_COORDINATOR), RpcLost("Heartbeat", "it did not answer")]
)
def test_what_passes_is_asked_again(passing: RpcError | RpcLost) -> None:
    coordinator = Coordinator(passing, passing, None)
    held(coordinator, until(lambda: len(coordinator.kept) >= 2))
    assert len(coordinator.heartbeats) - len(coordinator.kept) == 2


def test_a_group_that_rebalances_is_told_that_the_member_is_there_until_it_has_gone_on_without_it() -> None:
    rebalances, gone = RpcError("Heartbeat", Code.REBALANCE_IN_PROGRESS), RpcError("Heartbeat", Code.ILLEGAL_GENERATION)
    coordinator = Coordinator(None, rebalances, rebalances, gone)
    held(coordinator, sleep_s(0.6))
    assert len(coordinator.heartbeats) == 4 and len(coordinator.kept) == 3


def test_a_connection_that_cannot_be_made_is_tried_again() -> None:
    coordinator, failed = Coordinator(), list[int]()
    connect = coordinator.connect

    def fails_once() -> Broker:
        if not failed:
            failed.append(1)
            raise OSError("no such file")
        return connect()

    coordinator.connect = fails_once  # type: ignore[method-assign]
    held(coordinator, until(lambda: bool(coordinator.kept)))


def test_past_its_bound_a_held_loop_is_heartbeaten_for_no_more() -> None:
    coordinator = Coordinator()
    held(coordinator, sleep_s(0.9), max_block_ms=300)
    asked = [at for _, at in coordinator.kept]
    assert asked and asked[-1] - asked[0] < 0.4


def test_what_the_loop_does_not_keep_any_more_is_not_kept() -> None:
    """A loop that has been woken may be on its way out of the group when the thread comes to look."""
    coordinator = Coordinator()

    def work() -> None:
        until(lambda: bool(coordinator.kept))()
        coordinator.keep = None
        time.sleep(0.1)
        sent = len(coordinator.heartbeats)
        time.sleep(0.2)
        assert len(coordinator.heartbeats) == sent

    held(coordinator, work)


def test_another_generation_is_heartbeaten_for_as_what_it_is() -> None:
    coordinator, following = Coordinator(), MEMBERSHIP._replace(generation=6)

    def work() -> None:
        until(lambda: bool(coordinator.kept))()
        coordinator.keep = following
        until(lambda: following in coordinator.heartbeats)()
        time.sleep(0.3)

    held(coordinator, work)
    first = coordinator.heartbeats.index(following)
    assert set(coordinator.heartbeats[first:]) == {following}


def test_it_can_be_switched_off() -> None:
    coordinator, before = Coordinator(), threading.active_count()
    held(coordinator, sleep_s(0.6), max_block_ms=0)
    assert not coordinator.opened and threading.active_count() == before


def test_a_process_that_is_stopped_as_a_whole_is_not_taken_for_a_held_loop() -> None:
    """The thread sees the loop late when both go on, and gives it time to say that it runs."""
    coordinator = Coordinator()

    async def main() -> None:
        thread = HeartbeatThread(
            coordinator.connect, SystemClock(), to_keep=lambda: MEMBERSHIP, kept=lambda membership, at: None,
            session_timeout_ms=4_000, max_block_ms=60_000,
        )  # fmt: skip
        thread.start()
        # As it is after a stop: what the loop said last is old, and it runs.
        thread._beaten = time.monotonic() - 30
        await asyncio.sleep(0.8)
        thread.stop()

    asyncio.run(main())
    assert not coordinator.opened
