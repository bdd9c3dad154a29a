"""A dead letter of the payments pipeline, mended and replayed over HTTP at a worker that runs: it takes effect once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Message

pytestmark = pytest.mark.broker


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"X-Semel-Act": "1", "Accept": "application/json"}) as made:
        yield made


async def acted(client: aiohttp.ClientSession, root: str, **said: Any) -> Any:
    """What came of it, at its end."""
    async with client.post(f"{root}/actions", json=said) as response:
        assert response.status == 202, await response.text()
        where = f"{root}/actions/{(await response.json())['id']}"
    async with asyncio.timeout(60):
        while True:
            run = await read(client, where)
            if run["state"] != "running":
                return run
            await asyncio.sleep(0.05)


async def read(client: aiohttp.ClientSession, url: str) -> Any:
    async with client.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.json()


def payment(id: str, amount: Any) -> Message:
    return Message(b"account-1", json.dumps({"id": id, "account": "account-1", "amount": amount}).encode())


async def test_a_dead_letter_is_mended_and_replayed_over_http_and_takes_effect_once(
    kafka: LocalKafka, make_ledger: MakeLedger, client: aiohttp.ClientSession
) -> None:
    ledger: Ledger = await make_ledger(kafka, target="mending:pipeline")
    worker = ledger.worker().start()
    await worker.ready()
    wrong = [payment("p1", 5), payment("p2", "12,50"), payment("p3", "<b>7</b>"), payment("p4", 1)]
    await ledger.feed(wrong)
    await ledger.until_done(4)
    root = f"{await worker.url()}/dead-letters/{ledger.name}"

    [group] = (await read(client, root))["groups"]
    assert (group["count"], group["keys"], group["reasons"]) == (2, 1, {"undecodable": 2})
    [found] = (await read(client, f"{root}?search=12,50"))["letters"]
    letter = await read(client, f"{root}/letters/{found['position']}")
    assert (letter["value"]["amount"], letter["decoded"], letter["state"]) == ("12,50", False, "open")

    mended = {**letter["value"], "amount": 1250}
    async with client.post(f"{root}/letters/{found['position']}/diff", json={"value": mended}) as response:
        shown = await response.json()
    assert (shown["changes"][-3:-1], shown["other_id"]) == (['-  "amount": "12,50"', '+  "amount": 1250'], None)
    edit = {"action": "edit", "letter": found["position"], "value": mended, "reason": "typo", "as": "ada"}
    run = await acted(client, root, **edit)
    assert (run["state"], run["letters"], run["known"], run["came_back"]) == ("done", 1, 1, 0), run
    # Once more, by whoever did not see that it is done; and although it is known to be.
    assert (await acted(client, root, **edit))["letters"] == 0
    assert (await acted(client, root, **edit, again=True))["letters"] == 1
    await ledger.drained()
    status, row = await worker.row("balances", "account-1")
    assert (status, row["value"]) == (200, 5 + 1 + 1250)

    # What is as it was comes back, and stays to be seen.
    back = await acted(client, root, action="replay", group=group["fingerprint"])
    assert (back["letters"], back["came_back"]) == (1, 1)
    document = await read(client, root)
    assert (document["open"], document["done"]) == (1, {"edit": 1, "replay": 1})
    entries = (await read(client, f"{root}/audit"))["entries"]
    assert [(e["action"], e["by"]) for e in entries][-1] == ("edit", "ada (not proven)")
    settled = [json.loads(line.value or b"")["id"] for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert sorted(settled) == ["p1", "p2", "p4"]
    async with client.get(root, headers={"Accept": "text/html"}) as response:
        assert "<b>7</b>" not in await response.text()
    code, said = await ledger.command("prove")
    assert code == 0, said
    assert await worker.stopped() == 0
