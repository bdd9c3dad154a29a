"""Which worker holds a partition, and asking it: one hop, bounded in time and size, with the caller's credentials.

A request that carries the hop header is answered from what its receiver holds, never forwarded again, so a map
of owners that is out of date costs one refusal and no circle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import aiohttp
import msgspec
from yarl import URL

from semel.web.answer import Refusal
from semel.web.view import NotOwned, Restoring, WorkerView

HOP = "X-Semel-Hop"
FORWARD_TIMEOUT_S = 5.0  # a worker that takes longer is stopped, fenced or drowning
CONNECT_TIMEOUT_S = 2.0
CONNECTIONS_MAX = 32
ANSWER_BYTES_MAX = 64 << 20  # several times a page, for rows whose JSON is much longer than they are
MOVED_PAUSE_S = 0.2

T = TypeVar("T")


class Peers:
    """HTTP client of the other workers. Close it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, path: str, authorization: str | None) -> Any:
        """The JSON another worker answers. Restoring, NotOwned, or Refusal where it does not answer as it should."""
        headers = {HOP: "1", "Accept": "application/json"}
        if authorization is not None:
            headers["Authorization"] = authorization
        try:
            target = URL(url.rstrip("/") + path, encoded=True)
            async with self._client().get(target, headers=headers, allow_redirects=False) as response:
                body = await _read(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as lost:
            reason = "no answer in time" if isinstance(lost, TimeoutError) else type(lost).__name__
            raise Refusal(503, f"worker {url} does not answer: {reason}", retry_after_s=1, worker=url) from lost
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            document = None
        if status == 200 and document is not None:
            return document
        refusal = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
        progress = refusal.get("restoring")
        if status == 503 and progress is not None:
            raise Restoring(progress["partition"], progress["done"], progress["total"], progress["eta_seconds"])
        if status == 421:
            raise NotOwned
        if status == 400:
            raise Refusal(400, str(refusal.get("error", "bad request")))
        raise Refusal(503, f"worker {url} answered {status}", retry_after_s=1, worker=url)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                timeout=aiohttp.ClientTimeout(total=FORWARD_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                # Cookies are nothing workers exchange, and a proxy of the environment is not between them.
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise ValueError("answer too large")
    return bytes(body)


def partitions(view: WorkerView) -> list[int]:
    """Every partition of the app, ascending. Refusal before the first assignment."""
    found = sorted(owner.partition for owner in view.owners())
    if not found:
        raise Refusal(503, "this worker has no assignment yet; the group is still forming", retry_after_s=1)
    return found


def workers(view: WorkerView) -> list[str | None]:
    """Every worker that holds a partition; None is this one."""
    urls = {owner.url for owner in view.owners()}
    return ([None] if None in urls else []) + sorted(url for url in urls if url is not None)


async def ask(
    view: WorkerView,
    wanted: Sequence[int],
    here: Callable[[list[int]], T],
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
    here: Callable[[list[int]], T],
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
    found: list[T] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        found.append(answer)
    if mine is not None:
        found.append(here(mine))
    return found
