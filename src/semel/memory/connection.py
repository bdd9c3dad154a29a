"""A client's connection to the cluster: the way there and back, where the faults are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from semel.codes import Code
from semel.memory.cluster import MemoryCluster
from semel.memory.faults import Fault, Link
from semel.memory.log import PartitionLog
from semel.memory.refused import Refused
from semel.port import MemberIdRequired, RpcError, RpcLost
from semel.throttles import Throttles

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
        self.throttles = Throttles(cluster.timers.now)

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
        while (wait_s := self.throttles.wait_s(api)) > 0:
            await cluster.clock.sleep(wait_s)
        if link.paused is not None:
            await link.gate()
        fault = cluster.faults.next_call(self._name, api, args)[1] or _NO_FAULT
        if link.down or (fault.lost and not fault.sent):
            await cluster.clock.sleep(fault.answer_delay_s)
            raise RpcLost(api, "the connection is refused", sent=False)
        if fault.delay_s > self._rpc_timeout_s:
            if fault.applied:
                cluster.timers.after(fault.delay_s, lambda: _apply_late(apply))
            await cluster.clock.sleep(self._rpc_timeout_s)
            raise RpcLost(api, "timed out")
        does: Callable[[], Any] = apply if fault.applied else _nothing
        exchange: _Exchange[T] = _Exchange(cluster, link, does, fault.delay_s)
        patience_s = self._rpc_timeout_s - fault.delay_s
        result, refused = await exchange.answered(min(fault.answer_delay_s, patience_s))
        if link.paused is not None:
            await link.gate()
        self._check(api, exchange.breaks)
        if isinstance(refused, RpcLost):
            raise RpcLost(api, refused.detail)
        if refused is not None:
            raise self._error(api, refused)
        if fault.answer_delay_s > patience_s:
            raise RpcLost(api, "timed out")
        if fault.lost:
            raise RpcLost(api, "the answer is lost")
        self.throttles.heard(api, "in memory", int(fault.throttle_s * 1000))
        if fault.code:
            raise self._error(api, Refused(fault.code, "injected"))
        return cast("T", result)

    def _check(self, api: str, breaks: int) -> None:
        if self._link.breaks != breaks:
            raise RpcLost(api, "the connection was cut")

    def _error(self, api: str, refused: Refused) -> RpcError:
        self._forget(refused.code)
        if refused.code == Code.MEMBER_ID_REQUIRED and refused.member_id:
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
        self._link.waiting[mine] = None
        try:
            if not await timers.wait(mine, timers.now() + patience_s + self._rpc_timeout_s):
                raise RpcLost("", "timed out")
        finally:
            self._link.waiting.pop(mine, None)
            future.remove_done_callback(pass_on)
        return mine.result()

    async def changed(self, logs: Sequence[PartitionLog], deadline: float) -> bool:
        """Wait until one of the logs changes; False at the deadline."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link.waiting[waiter] = None
        for log in logs:
            log.watch(waiter)
        try:
            return await self._cluster.timers.wait(waiter, deadline)
        finally:
            self._link.waiting.pop(waiter, None)
            for log in logs:
                log.unwatch(waiter)


class _Exchange(Generic[T]):
    """A request on its way, what it does, and its answer on the way back.

    The way is the network's and the cluster's, not the client's: a client that is frozen, or that no longer waits,
    stops neither.
    """

    __slots__ = ("_apply", "_back_s", "_cluster", "_done", "_link", "_loop", "breaks")

    def __init__(self, cluster: MemoryCluster, link: Link, apply: Callable[[], Any], delay_s: float) -> None:
        self._cluster = cluster
        self._link = link
        self._apply = apply
        self._back_s = 0.0
        self.breaks = link.breaks
        self._loop = loop = asyncio.get_running_loop()
        self._done: asyncio.Future[tuple[T | None, Refused | RpcLost | None]] = loop.create_future()
        if delay_s > 0:
            loop.call_later(delay_s, self._arrive, context=cluster.context)
        else:
            loop.call_soon(self._arrive, context=cluster.context)

    async def answered(self, back_s: float) -> tuple[T | None, Refused | RpcLost | None]:
        self._back_s = back_s
        return await self._done

    def _arrive(self) -> None:
        if self._link.breaks != self.breaks and not self._link.arrives:
            self._answer(None, None)
            return
        self._cluster.timers.run_due()
        try:
            result = self._apply()
        except Refused as refused:
            self._answer(None, refused)
            return
        if isinstance(result, Coroutine):
            self._loop.create_task(self._wait(cast("Coroutine[Any, Any, T]", result)), context=self._cluster.context)
        else:
            self._answer(result, None)

    async def _wait(self, result: Coroutine[Any, Any, T]) -> None:
        try:
            self._answer(await result, None)
        except (Refused, RpcLost) as refused:
            self._answer(None, refused)

    def _answer(self, result: T | None, refused: Refused | RpcLost | None) -> None:
        if self._back_s > 0:
            self._loop.call_later(self._back_s, self._hear, (result, refused), context=self._cluster.context)
        else:
            self._loop.call_soon(self._hear, (result, refused), context=self._cluster.context)

    def _hear(self, answer: tuple[T | None, Refused | RpcLost | None]) -> None:
        if not self._done.done():
            self._done.set_result(answer)


def _nothing() -> None:
    return None


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
