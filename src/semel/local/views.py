"""The web views of a run's workers, as a user's program reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from semel.errors import SemelError
from semel.web.paths import query, table_path
from semel.web.scan import LIMIT_MAX

ANSWER_S = 2.0
# A page of a merged table asks the other worker too, which may be busy with a batch.
PAGE_S = 30.0


class Views:
    """The web views as a user's program reads them."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    async def pipeline(self, url: str) -> dict[str, Any] | None:
        """The worker's document about its pipeline; None while it does not answer."""
        try:
            status, documents = await self._get(f"{url}/pipelines", ANSWER_S)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        return documents[0] if status == 200 and documents else None

    async def pages(self, url: str, table: str) -> AsyncIterator[list[tuple[str, Any]]]:
        """Every row of a table as (key, value), page after page. SemelError where the worker refuses."""
        page: str | None = None
        while True:
            asked = query([("limit", LIMIT_MAX), ("page", page)])
            try:
                status, answer = await self._get(url + table_path(table) + asked, PAGE_S)
            except (aiohttp.ClientError, TimeoutError, ValueError) as lost:
                raise SemelError(
                    f"table {table!r} cannot be read from {url}: {str(lost) or type(lost).__name__}"
                ) from lost
            if status != 200:
                raise SemelError(f"table {table!r} cannot be read from {url}: {answer.get('error', status)}")
            yield [(row["key"], row["value"]) for row in answer["rows"]]
            page = answer["next"]
            if page is None:
                return

    async def close(self) -> None:
        await self._session.close()

    async def _get(self, url: str, timeout_s: float) -> tuple[int, Any]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.get(url, timeout=timeout, headers={"Accept": "application/json"}) as answer:
            return answer.status, await answer.json()
