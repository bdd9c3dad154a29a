"""A client's connection to the cluster: the way there and back, where the faults are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from semel.port import MemberIdRequired, RpcError, RpcLost
from semel.testing.memory.cluster import MemoryCluster
from semel.testing.memory.faults import Fault
from semel.testing.memory.log import PartitionLog
from semel.testing.memory.refused import Refused

# Error codes after which a client looks leaders, or a coordinator, up afresh.
STALE_METADATA = frozenset({3, 5, 6, 9, 74, 100})
STALE_COORDINATOR = frozenset({14, 15, 16})

_NO_FAULT = Fault()

T = TypeVar("T")


class Connection:
    """`forget` is told the code of each error answer."""

    def __init__(self, cluster: MemoryCluster, name: str, rpc_timeout_s: float, forget: Callable[[int], None]) -> None:
        self._cluster = cluster
        self._name = name
        self._rpc_timeout_s = rpc_timeout_s
        self._forget = forget
        self._link = cluster.faults.link(name)
        self._open = False

    async def open(self) -> None:
        await self.call("ApiVersions", {}, lambda: None)
        self._open = True

    def close(self) -> None:
        self._open = False
        self._link.fail_waiting()

    async def call(self, api: str, args: Mapping[str, Any], apply: Callable[[], T | Awaitable[T]]) -> T:
        cluster, link = self._cluster, self._link
        if not self._open and api != "ApiVersions":
            raise RpcLost(api, "the client is not started", sent=False)
        await link.gate()
        _, fault = cluster.faults.next_call(self._name, api, args)
        if fault is None:
            fault = _NO_FAULT
        breaks = link.breaks
        if link.down or (fault.lost and not fault.sent):
            await cluster.clock.sleep(fault.answer_delay_s)
            raise RpcLost(api, "the connection is refused", sent=False)
        if fault.delay_s > self._rpc_timeout_s:
            if fault.applied:
                cluster.timers.after(fault.delay_s, lambda: _apply_late(apply))
            await cluster.clock.sleep(self._rpc_timeout_s)
            raise RpcLost(api, "timed out")
        await cluster.clock.sleep(fault.delay_s)
        self._check(api, breaks)
        if fault.applied:
            result: T | None = await self._apply(api, apply, breaks)
        else:
            result = None
        patience_s = self._rpc_timeout_s - fault.delay_s
        await cluster.clock.sleep(min(fault.answer_delay_s, patience_s))
        await link.gate()
        self._check(api, breaks)
        if fault.answer_delay_s > patience_s:
            raise RpcLost(api, "timed out")
        if fault.lost:
            raise RpcLost(api, "the answer is lost")
        if fault.code:
            raise self._error(api, Refused(fault.code, "injected"))
        return cast("T", result)

    async def _apply(self, api: str, apply: Callable[[], T | Awaitable[T]], breaks: int) -> T:
        self._cluster.timers.run_due()
        try:
            result = apply()
            if isinstance(result, Awaitable):
                return cast("T", await result)
        except Refused as error:
            await self._cluster.clock.sleep(0)
            await self._link.gate()
            self._check(api, breaks)
            raise self._error(api, error) from None
        except RpcLost as lost:
            raise RpcLost(api, lost.detail) from None
        return result

    def _check(self, api: str, breaks: int) -> None:
        if self._link.breaks != breaks:
            raise RpcLost(api, "the connection was cut")

    def _error(self, api: str, refused: Refused) -> RpcError:
        self._forget(refused.code)
        if refused.code == 79 and refused.member_id:
            return MemberIdRequired(refused.member_id)
        return RpcError(api, refused.code, refused.detail)

    async def answer(self, future: asyncio.Future[T], patience_s: float) -> T:
        """Wait for what the cluster says: RpcLost when the connection breaks, or `patience_s` and the timeout pass."""
        timers = self._cluster.timers
        mine: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def pass_on(done: asyncio.Future[T]) -> None:
            if mine.done() or done.cancelled():
                return
            error = done.exception()
            if error is not None:
                mine.set_exception(error)
            else:
                mine.set_result(done.result())

        future.add_done_callback(pass_on)
        self._link.waiting.add(mine)
        try:
            if not await timers.wait(mine, timers.now() + patience_s + self._rpc_timeout_s):
                raise RpcLost("", "timed out")
        finally:
            self._link.waiting.discard(mine)
            future.remove_done_callback(pass_on)
        return mine.result()

    async def changed(self, logs: Sequence[PartitionLog], deadline: float) -> bool:
        """Wait until one of the logs changes; False at the deadline."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link.waiting.add(waiter)
        for log in logs:
            log.watch(waiter)
        try:
            return await self._cluster.timers.wait(waiter, deadline)
        finally:
            self._link.waiting.discard(waiter)
            for log in logs:
                log.unwatch(waiter)


def _apply_late(apply: Callable[[], object]) -> None:
    """A request that arrives after its client gave up; nobody hears the answer."""
    try:
        result = apply()
    except Refused:
        return
    if asyncio.iscoroutine(result):
        # A Fetch, JoinGroup or SyncGroup: what it does besides waiting, it does before it waits.
        try:
            result.send(None)
        except (StopIteration, Refused, RpcLost):
            return
        result.close()
