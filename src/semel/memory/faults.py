"""Faults between a client and the in-memory cluster.

A *script* looks at each call and may answer with a `Fault`; the first one to do so decides. Scripts see calls in
the order in which they are made, so with one seed a run repeats exactly.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from semel.port import RpcLost


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who makes it, the API as the Kafka protocol names it, its place among all calls, its arguments."""

    client: str
    api: str
    number: int
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one call. The functions below name the usual ones."""

    delay_s: float = 0.0
    """On the way there. Beyond the client's timeout the client gives up, and the request takes effect later."""
    answer_delay_s: float = 0.0
    applied: bool = True
    """Whether the request takes effect."""
    code: int = 0
    """The answer is this error."""
    lost: bool = False
    """There is no answer: `RpcLost`."""
    sent: bool = True
    """What a lost call says of itself."""
    throttle_s: float = 0.0
    """The answer asks the client to wait before its next request of this kind."""


def refuse(code: int, *, applied: bool = False) -> Fault:
    """The answer is an error; with `applied` the request took effect all the same."""
    return Fault(code=code, applied=applied)


def lose_request(*, after_s: float = 0.0) -> Fault:
    """The request never arrives, which the client cannot know."""
    return Fault(lost=True, applied=False, answer_delay_s=after_s)


def lose_answer(*, after_s: float = 0.0) -> Fault:
    """The request takes effect, its answer is lost."""
    return Fault(lost=True, answer_delay_s=after_s)


def unsent() -> Fault:
    """The connection was refused: the request never left."""
    return Fault(lost=True, applied=False, sent=False)


def delay(there_s: float = 0.0, back_s: float = 0.0) -> Fault:
    return Fault(delay_s=there_s, answer_delay_s=back_s)


def throttle(seconds: float) -> Fault:
    """The request takes effect, and the next of its kind is to wait."""
    return Fault(throttle_s=seconds)


Script: TypeAlias = Callable[[Call], Fault | None]
Condition: TypeAlias = Callable[[Call], bool]


class Rule:
    """A fault for calls of some APIs, from the `skip`th match on, `times` times (None: always)."""

    def __init__(
        self, apis: Sequence[str], fault: Fault, *, when: Condition | None, times: int | None, skip: int
    ) -> None:
        self._apis = frozenset(apis)
        self._fault = fault
        self._when = when
        self._left = times
        self._skip = skip
        self.hits = 0

    def __call__(self, call: Call) -> Fault | None:
        if self._left == 0 or call.api not in self._apis or (self._when is not None and not self._when(call)):
            return None
        if self._skip > 0:
            self._skip -= 1
            return None
        if self._left is not None:
            self._left -= 1
        self.hits += 1
        return self._fault


class RandomFaults:
    """A script that draws: each call fails with probability `rate`, in one of the ways given."""

    def __init__(self, rng: random.Random, rate: float, ways: Sequence[Fault], apis: Sequence[str] = ()) -> None:
        self._rng = rng
        self._rate = rate
        self._ways = ways
        self._apis = frozenset(apis)
        self.hits = 0

    def __call__(self, call: Call) -> Fault | None:
        if (self._apis and call.api not in self._apis) or self._rng.random() >= self._rate:
            return None
        self.hits += 1
        return self._rng.choice(self._ways)


class Quota:
    """A script: each client may produce so many bytes a second. What is over it, it is told to wait for after the answer.

    Who does not wait is not heard until then, as on the connection that a broker has muted. `waits`: how long clients were
    told to wait, each time; `early`: how often one asked all the same.
    """

    def __init__(self, now: Callable[[], float], bytes_per_s: float, *, burst_s: float = 1.0) -> None:
        self._now = now
        self._bytes_per_s = bytes_per_s
        self._burst_s = burst_s
        self._paid_until: dict[str, float] = {}
        self.waits: list[float] = []
        self.early = 0

    def __call__(self, call: Call) -> Fault | None:
        if call.api != "Produce":
            return None
        now = self._now()
        paid = self._paid_until.get(call.client, 0.0)
        if paid - now > 0.01:
            self.early += 1
            return delay(paid - now)
        size = sum(map(len, call.args["batches"].values()))
        paid = self._paid_until[call.client] = max(paid, now - self._burst_s) + size / self._bytes_per_s
        if paid <= now:
            return None
        self.waits.append(paid - now)
        return throttle(paid - now)


class Link:
    """The connection of one client, as far as faults have to do with it."""

    def __init__(self) -> None:
        self.down = False
        self.breaks = 0
        self.arrives = False
        self.paused: asyncio.Future[None] | None = None
        # In the order in which they began to wait: what is lost first must not depend on where objects lie.
        self.waiting: dict[asyncio.Future[Any], None] = {}

    async def gate(self) -> None:
        """Stand still while the client is paused."""
        while self.paused is not None:
            await asyncio.shield(self.paused)

    def fail_waiting(self) -> None:
        self.breaks += 1
        for future in self.waiting:
            if not future.done():
                future.set_exception(RpcLost("", "the connection was cut"))
        self.waiting.clear()


class Faults:
    """All faults of one cluster. Clients are named as their `MemoryBroker` is."""

    def __init__(self) -> None:
        self._scripts: list[Script] = []
        self._links: dict[str, Link] = {}
        self._calls = 0
        self._denied: set[tuple[str, str]] = set()
        self.marker_delay_s: Callable[[], float] = lambda: 0.0
        """How long EndTxn's markers take to be written after its answer."""
        self.metadata_delay_s: Callable[[], float] = lambda: 0.0
        """How old a topic must be for the broker that is asked about it to know it; asked for each question."""

    def script(self, script: Script) -> None:
        self._scripts.append(script)

    def add(
        self,
        api: str | Sequence[str],
        fault: Fault,
        *,
        when: Condition | None = None,
        times: int | None = 1,
        skip: int = 0,
    ) -> Rule:
        """`api` as the Kafka protocol names it, for instance "EndTxn". The rule counts its `hits`."""
        rule = Rule([api] if isinstance(api, str) else api, fault, when=when, times=times, skip=skip)
        self._scripts.append(rule)
        return rule

    def clear(self) -> None:
        """Forget every script, and give every right back; connections that are cut or paused stay so."""
        self._scripts.clear()
        self._denied.clear()

    def deny(self, topic: str, *rights: str) -> None:
        """Take "Read", "Write" or "Describe" on a topic from every client."""
        self._denied.update((topic, right) for right in rights)

    def allow(self, topic: str) -> None:
        """Give every right on it back."""
        self._denied = {denied for denied in self._denied if denied[0] != topic}

    def denies(self, topic: str, right: str) -> bool:
        return (topic, right) in self._denied

    def cut(self, client: str, *, arrives: bool = False) -> None:
        """Break the client's connection: waiting calls are lost, new ones are refused, until `mend`.

        `arrives`: requests already under way reach the cluster all the same.
        """
        link = self.link(client)
        link.down = True
        link.arrives = arrives
        link.fail_waiting()

    def mend(self, client: str) -> None:
        self.link(client).down = False

    def pause(self, client: str) -> None:
        """Stop the client as SIGSTOP does: it neither sends nor hears anything; the cluster goes on without it."""
        link = self.link(client)
        if link.paused is None:
            link.paused = asyncio.get_running_loop().create_future()

    def resume(self, client: str) -> None:
        link = self.link(client)
        if link.paused is not None:
            link.paused.set_result(None)
            link.paused = None

    # -- for the client

    def link(self, client: str) -> Link:
        return self._links.setdefault(client, Link())

    def next_call(self, client: str, api: str, args: Mapping[str, Any]) -> tuple[Call, Fault | None]:
        self._calls += 1
        call = Call(client, api, self._calls, args)
        for script in self._scripts:
            fault = script(call)
            if fault is not None:
                return call, fault
        return call, None
