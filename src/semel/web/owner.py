"""Which worker holds a partition, and asking it: one hop, bounded in time and size, and only where it proves itself.

A request that carries the hop header is answered from what its receiver holds, never forwarded again, so a map
of owners that is out of date costs one refusal and no circle. What the caller presented is never passed on: any member of
the consumer group may claim any URL, so a worker proves first that it is one of ours (`semel.web.trust`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import aiohttp
import msgspec
from yarl import URL

from semel.web.answer import Refusal
from semel.web.auth import HOP, PROOF
from semel.web.trust import SCHEME, TICKET_PATH, TICKET_S, GroupKey, equal, fresh_nonce
from semel.web.view import NotOwned, Restoring, WorkerView

FORWARD_TIMEOUT_S = 5.0  # a worker that takes longer is stopped, fenced or drowning
CONNECT_TIMEOUT_S = 2.0
CONNECTIONS_MAX = 32
CONNECTIONS_EACH_MAX = 8  # so that one that hangs does not take them all
ANSWER_BYTES_MAX = 64 << 20  # several times a page, for rows whose JSON is much longer than they are
TICKET_BYTES_MAX = 4096
PEERS_MAX = 1000  # tickets kept: a group has fewer workers, or they are asked for again
MOVED_PAUSE_S = 0.2

T = TypeVar("T")


class Ticket(msgspec.Struct):
    ticket: str


class _Progress(msgspec.Struct):
    partition: int
    done: int
    total: int
    eta_seconds: float | None


class _Refused(msgspec.Struct):
    error: str = "bad request"
    restoring: _Progress | None = None


class _Answer(NamedTuple):
    status: int
    body: bytes


class _TooLarge(Exception):
    """More than any answer of a worker takes."""


class Peers:
    """HTTP client of the other workers. Close it."""

    def __init__(self, key: GroupKey) -> None:
        self._key = key
        self._session: aiohttp.ClientSession | None = None
        self._tickets: dict[str, tuple[str, float]] = {}

    async def get(self, url: str, path: str, shape: type[T]) -> T:
        """What another worker answers, as `shape`. Restoring, NotOwned, or Refusal where it does not answer as it should."""
        if not url:
            raise Refusal(503, "the worker that is to be asked has no address; set its web_url", retry_after_s=1)
        ticket, is_new = await self._ticket(url)
        answer = await self._ask(url, path, ticket)
        if answer.status == 401 and not is_new:
            self._tickets.pop(url, None)
            ticket, _ = await self._ticket(url)
            answer = await self._ask(url, path, ticket)
        if answer.status == 200:
            return _read(url, answer.body, shape)
        if answer.status == 421:
            raise NotOwned
        if answer.status in (400, 503):
            refused = _read(url, answer.body, _Refused)
            if answer.status == 400:
                raise Refusal(400, refused.error[:500])
            at = refused.restoring
            if at is not None:
                raise Restoring(at.partition, at.done, at.total, at.eta_seconds)
        raise Refusal(503, f"worker {url} answered {answer.status}", retry_after_s=1, worker=url)

    async def _ticket(self, url: str) -> tuple[str, bool]:
        """What `url` lets us ask it with, and whether it was asked for just now."""
        ticket, until = self._tickets.get(url, ("", 0.0))
        if time.monotonic() < until:
            return ticket, False
        ticket = _read(url, (await self._ask(url, TICKET_PATH, None)).body, Ticket).ticket
        if len(self._tickets) >= PEERS_MAX:
            self._tickets.clear()
        self._tickets[url] = (ticket, time.monotonic() + TICKET_S)
        return ticket, True

    async def _ask(self, url: str, path: str, ticket: str | None) -> _Answer:
        """The answer of a worker that proves that it is the one at `url`; its 401 need not prove anything."""
        nonce = fresh_nonce()
        headers = {HOP: nonce, "Accept": "application/json"}
        if ticket is not None:
            headers["Authorization"] = f"{SCHEME} {ticket}:{self._key.of_request(url, path, ticket, nonce)}"
        most = ANSWER_BYTES_MAX if ticket is not None else TICKET_BYTES_MAX
        try:
            target = URL(url + path, encoded=True)
            async with self._client().get(target, headers=headers, allow_redirects=False) as response:
                body = await _body(response, most)
                status, proof = response.status, response.headers.get(PROOF, "")
        except _TooLarge:
            raise odd(url) from None
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as lost:
            reason = "no answer in time" if isinstance(lost, TimeoutError) else type(lost).__name__
            raise Refusal(503, f"worker {url} does not answer: {reason}", retry_after_s=1, worker=url) from lost
        if status == 401 and ticket is not None:
            return _Answer(status, body)
        if not equal(proof, self._key.of_answer(url, nonce, status, body)):
            self._tickets.pop(url, None)
            raise Refusal(
                502,
                f"what answers at {url} does not prove that it is a worker of this group: another program, an earlier "
                "version of semel, another web_token, or a web_url that leads elsewhere",
                worker=url,
            )
        return _Answer(status, body)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, limit_per_host=CONNECTIONS_EACH_MAX),
                timeout=aiohttp.ClientTimeout(total=FORWARD_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                # Cookies are nothing workers exchange, and a proxy of the environment is not between them.
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > most:
            raise _TooLarge
    return bytes(body)


def _read(url: str, body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        raise odd(url) from wrong


def odd(url: str) -> Refusal:
    """502: a worker of the group, and yet not what was asked for."""
    return Refusal(502, f"worker {url} answered in another form; does it run another version of semel?", worker=url)


def partitions(view: WorkerView) -> list[int]:
    """Every partition of the app, ascending. Refusal before the first assignment."""
    owned = sorted(owner.partition for owner in view.owners())
    if not owned:
        raise Refusal(503, "this worker has no assignment yet; the group is still forming", retry_after_s=1)
    return owned


def workers(view: WorkerView) -> list[str | None]:
    """Every worker that holds a partition; None is this one."""
    urls = {owner.url for owner in view.owners()}
    return ([None] if None in urls else []) + sorted(url for url in urls if url is not None)


async def ask(
    view: WorkerView,
    wanted: Sequence[int],
    here: Callable[[list[int]], Awaitable[T]],
    there: Callable[[str, list[int]], Awaitable[T]],
) -> list[T]:
    """Ask the owners of the `wanted` partitions, each once for all of its own, in parallel.

    A partition that has just moved is looked up again once. Restoring and Refusal pass through.
    """
    try:
        return await _ask_once(view, wanted, here, there)
    except NotOwned:
        await asyncio.sleep(MOVED_PAUSE_S)
    try:
        return await _ask_once(view, wanted, here, there)
    except NotOwned:
        raise moving() from None


def moving() -> Refusal:
    """503: nobody can say just now."""
    return Refusal(503, "the partition is moving between workers", retry_after_s=1)


async def _ask_once(
    view: WorkerView,
    wanted: Sequence[int],
    here: Callable[[list[int]], Awaitable[T]],
    there: Callable[[str, list[int]], Awaitable[T]],
) -> list[T]:
    owners = {owner.partition: owner.url for owner in view.owners()}
    groups: dict[str | None, list[int]] = {}
    for partition in wanted:
        if partition not in owners:
            raise NotOwned
        groups.setdefault(owners[partition], []).append(partition)
    mine = groups.pop(None, None)
    remote = [there(url, held) for url, held in groups.items() if url is not None]
    answers = await asyncio.gather(*remote, return_exceptions=True)
    results: list[T] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        results.append(answer)
    if mine is not None:
        results.append(await here(mine))
    return results
