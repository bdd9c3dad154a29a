"""`semel dlq` acts on dead letters of a real pipeline on a real Kafka: killed where it hurts, it loses and doubles none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka.errors import KafkaError

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import SETTINGS, Ledger
from tests.broker.logs import Message
from tests.broker.workers import PROJECT, SEMEL

pytestmark = pytest.mark.broker

KILLED = -9
FINGERPRINT = "ValueError@mending:settle"


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def dlq(
    ledger: Ledger,
    verb: str,
    *arguments: str,
    kill_after_s: float | None = None,
    given: bytes = b"",
    **environment: str,
) -> Said:
    """`semel dlq VERB PIPELINE ...`, to its end or to its SIGKILL."""
    running = await asyncio.create_subprocess_exec(
        SEMEL, "dlq", verb, ledger.target, *arguments, cwd=PROJECT,
        env={**os.environ, "SEMEL_BROKER": ledger.bootstrap, "PIPELINE": ledger.name, **SETTINGS, **environment},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    if kill_after_s is not None:
        asyncio.get_running_loop().call_later(kill_after_s, running.kill)
    out, err = await running.communicate(given)
    assert b"Traceback" not in err, err.decode()
    assert running.returncode is not None
    return Said(running.returncode, out.decode(), err.decode())


def bad(number: int, accounts: int = 50) -> Message:
    account = f"account-{number % accounts}"
    event = {"id": f"bad-{number}", "account": account, "amount": 1, "bad": True}
    return Message(account.encode(), json.dumps(event).encode(), (("trace", b"t%d" % number),))


async def dead(ledger: Ledger, messages: list[Message], **environment: str) -> None:
    """They are in the dead letters, and no worker runs."""
    worker = ledger.worker(**environment).start()
    await logs.send(ledger.bootstrap, ledger.source, messages)
    await ledger.drained()
    assert await worker.stopped() == 0


async def settled(ledger: Ledger) -> Counter[str]:
    return Counter(
        json.loads(line.value)["id"] for line in await logs.read(ledger.bootstrap, ledger.sink) if line.value
    )


async def audited(ledger: Ledger) -> list[Any]:
    lines = await logs.read(ledger.bootstrap, f"{ledger.name}-audit")
    return [json.loads(line.value or b"") for line in lines]


@pytest.mark.parametrize("dedup", ["yes", "no"])
async def test_a_tool_killed_amid_a_replay_of_thousands_loses_and_doubles_none(
    kafka: LocalKafka, make_ledger: MakeLedger, dedup: str, seed: int
) -> None:
    ledger = await make_ledger(kafka, target="mending:pipeline")
    count, rng = 4_000, random.Random(seed)
    await dead(ledger, [bad(n) for n in range(count)], DEDUP=dedup)
    worker = ledger.worker("w1", log="mended", MENDED="1", DEDUP=dedup).start()
    await worker.ready()
    everything = ("--all", "--yes", "--rate", "0", "--reason", "mended")
    for point, nth in (("after_partitions", 2), ("after_produce", 3), ("before_partitions", 1), ("after_end", 2)):
        ended = await dlq(ledger, "replay", *everything, SEMEL_FAILPOINT=f"commit.{point}:kill:{nth}", DEDUP=dedup)
        assert ended.code == KILLED, ended.err
    for _ in range(3):
        await dlq(ledger, "replay", *everything, kill_after_s=rng.uniform(1.0, 3.0), DEDUP=dedup)
    told = sum(sum(entry["groups"].values()) for entry in await audited(ledger))
    assert 0 < told <= count
    last = await dlq(ledger, "replay", *everything, "--json", DEDUP=dedup)
    if told < count:
        assert (last.code, last.json["came_back"]) == (0, 0), last.err
        assert last.json["replayed"] == count - told
    else:
        assert last.code == 1
    await ledger.drained()
    assert await settled(ledger) == {f"bad-{n}": 1 for n in range(count)}
    entries = await audited(ledger)
    assert {entry["action"] for entry in entries} == {"replay"}
    assert sum(sum(entry["groups"].values()) for entry in entries) == count
    # The tool itself is exact: not even the dedup rule had anything to do.
    sources = await logs.read(ledger.bootstrap, ledger.source)
    replays = Counter(line.value for line in sources if line.header("semel.replay"))
    assert set(replays.values()) == {1} and len(replays) == count
    assert (await dlq(ledger, "ls", "--json", DEDUP=dedup)).json["letters"] == 0
    assert (await dlq(ledger, "replay", *everything, DEDUP=dedup)).code == 1
    os.environ["DEDUP"] = dedup
    try:
        code, said = await ledger.command("prove")
    finally:
        del os.environ["DEDUP"]
    assert code == 0, said
    assert await worker.stopped() == 0


async def test_letters_are_replayed_edited_dropped_redirected_archived_and_forgotten(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    ledger = await make_ledger(kafka, target="mending:pipeline")
    await dead(ledger, [bad(n, accounts=3) for n in range(12)])
    others = f"{ledger.name}.others"
    await logs.create(ledger.bootstrap, others, 2)
    worker = ledger.worker("w1", log="as it was").start()
    await worker.ready()

    # Nothing is done unasked, nor without a reason.
    refused = await dlq(ledger, "replay", "--all")
    assert (refused.code, "say --yes" in refused.err) == (2, True)
    assert (await dlq(ledger, "drop", "--all", "--yes", "--reason", " ")).code == 2
    assert "12 letters would be replayed" in (await dlq(ledger, "replay", "--all", "--dry-run")).err
    assert f"{ledger.name}-audit" not in await logs.topics(ledger.bootstrap)

    # One that is not there is not done with.
    for more in ("--dry-run", "--yes"):
        mistaken = await dlq(ledger, "replay", "--group", "NONEXISTENT", more)
        assert mistaken.code == 1
        assert (
            f"no letter of a group 'NONEXISTENT' of {ledger.name}. There is {FINGERPRINT}; `semel dlq ls`"
            in mistaken.err
        )

    # The code is as it was: it comes back, and that is said.
    rows = (await dlq(ledger, "show", "--group", FINGERPRINT, "--json")).json["letters"]
    assert {row["state"] for row in rows} == {"open"}
    one = rows[0]["position"]
    came_back = await dlq(ledger, "replay", one, "--as", "ada", "--json")
    assert (came_back.code, came_back.json["came_back"]) == (1, 1), came_back.err
    assert "1 letter replayed\n" in came_back.err
    assert "all letters that fit are done" in (await dlq(ledger, "replay", one)).err
    shown = (await dlq(ledger, "show", one, "--json")).json
    assert (shown["state"], shown["history"][0]["by"]) == ("replay", "ada")
    again = (await dlq(ledger, "show", shown["source"].replace(shown["source"], rows[0]["source"]), "--json")).json
    assert again["revision"] == 0

    # Mended by hand, and as a file.
    edited = rows[1]
    assert (
        "not what the topic declares"
        in (await dlq(ledger, "edit", edited["position"], "--set", 'amount="much"', "--reason", "x", "--yes")).err
    )
    assert (
        "--new-id"
        in (await dlq(ledger, "edit", edited["position"], "--set", 'id="other"', "--reason", "x", "--yes")).err
    )
    done = await dlq(
        ledger, "edit", edited["position"], "--set", "bad=false", "--set", "amount=70", "--reason", "typo", "--yes"
    )
    assert done.code == 0, done.err
    assert '+  "amount": 70' in done.err
    third = rows[2]
    value = {
        **json.loads(json.dumps((await dlq(ledger, "show", third["position"], "--json")).json["value"])),
        "bad": False,
    }
    held = await dlq(
        ledger, "edit", third["position"], "--value", "-", "--reason", "typo", "--yes", "--hold",
        given=json.dumps(value).encode(),
    )  # fmt: skip
    assert held.code == 0, held.err
    assert f"{rows[2]['source']}` replays it" in held.err

    # Out of the way.
    assert (await dlq(ledger, "redirect", rows[3]["position"], "--to", others)).code == 0
    [moved] = await logs.read(ledger.bootstrap, others)
    assert (moved.header("trace"), moved.header("semel.pipeline")) != ("", None)
    assert "is a topic of" in (await dlq(ledger, "redirect", "--all", "--yes", "--to", ledger.source)).err
    assert (await dlq(ledger, "drop", rows[4]["position"], "--reason", "a test")).code == 0
    assert (await dlq(ledger, "archive", FINGERPRINT)).code == 0
    assert (await dlq(ledger, "ls", "--json")).json["groups"] == []
    [group] = (await dlq(ledger, "ls", "--archived", "--json")).json["groups"]
    assert group["count"] == 12 + 1 + 1 - 5, "one came back, one is held, five are done with"
    assert await worker.stopped() == 0

    # The code is mended: what is left comes back by its group's name.
    worker = ledger.worker("w1", log="mended", MENDED="1").start()
    await worker.ready()
    rest = await dlq(ledger, "replay", "--group", FINGERPRINT, "--yes", "--json")
    assert (rest.code, rest.json["replayed"], rest.json["came_back"]) == (0, 9, 0), rest.err
    await ledger.drained()
    gone = {
        json.loads(moved.value or b"")["id"],
        (await dlq(ledger, "show", rows[4]["position"], "--json")).json["value"]["id"],
    }
    assert await settled(ledger) == {f"bad-{n}": 1 for n in range(12) if f"bad-{n}" not in gone}
    entries = await audited(ledger)
    assert Counter(entry["action"] for entry in entries) == {
        "replay": 2, "edit": 2, "redirect": 1, "drop": 1, "archive": 1
    }  # fmt: skip
    assert b"account-" not in json.dumps(entries).encode()

    forgotten = await dlq(ledger, "forget", "account-1", "--reason", "asked to", "--yes", "--delete", "--json")
    assert (forgotten.code, forgotten.json["kept"]) == (0, {}), forgotten.err
    left = await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
    assert not [line for line in left if line.key == b"account-1"]
    # What was deleted is counted nowhere.
    done = (await dlq(ledger, "ls", "--done", "--json")).json
    assert sum(done["done"].values()) == done["letters"] == sum(line.key is not None for line in left)
    mistyped = await dlq(ledger, "forget", '"account-1"', "--reason", "asked to", "--yes")
    assert (mistyped.code, "holds no letter of the key" in mistyped.err) == (0, True), mistyped.err
    _, said = await ledger.command("prove")
    assert "violated" not in said, said
    assert await worker.stopped() == 0


@pytest.mark.parametrize("dedup", ["yes", "no"])
async def test_held_keys_go_on_in_order_when_their_letters_are_edited_dropped_or_replayed(
    kafka: LocalKafka, make_ledger: MakeLedger, dedup: str, seed: int
) -> None:
    """A worker dies while keys are held, and another one while they are let go."""
    ledger, rng = await make_ledger(kafka, target="mending:pipeline"), random.Random(seed)
    accounts, bad_at = [f"account-{n}" for n in range(30)], {f"account-{n}": rng.randrange(10) for n in range(6)}
    messages = [
        Message(account.encode(), json.dumps({"id": f"{account}/{n}", "account": account, "amount": 1,
                                              "bad": bad_at.get(account) == n}).encode(), ())
        for n in range(20) for account in accounts
    ]  # fmt: skip
    environment = {"DEDUP": dedup, "THEN": "hold"}
    worker = ledger.worker(**environment).start()
    await logs.send(ledger.bootstrap, ledger.source, messages[:450])
    await until(lambda: letters_of(ledger), set(bad_at))
    worker.kill9()
    worker = worker.start()
    await logs.send(ledger.bootstrap, ledger.source, messages[450:])
    whole = {account: [f"{account}/{n}" for n in range(bad_at.get(account, 20))] for account in accounts}
    await until(lambda: settled_by_key(ledger), {account: ids for account, ids in whole.items() if ids})
    assert await worker.metric("semel_agent_held_keys") == 6
    assert await letters_of(ledger) == set(bad_at)
    shown = await dlq(ledger, "ls", **environment)
    assert "6 of them hold their keys" in shown.err
    edited, dropped, *replayed = bad_at
    at = {json.loads(line.value or b"")["account"]: f"{line.partition}@{line.offset}"
          for line in await logs.read(ledger.bootstrap, ledger.dead_letter_topic)}  # fmt: skip
    shown = await dlq(ledger, "show", at[edited], **environment)
    assert "its key waits for it" in shown.out
    done = await dlq(ledger, "edit", at[edited], "--set", "bad=false", "--yes", "--reason", "typo", **environment)
    assert done.code == 0, done.err
    done = await dlq(ledger, "drop", at[dropped], "--reason", "test", **environment)
    assert done.code == 0, done.err
    worker.kill9()
    worker = ledger.worker("w1", log="mended", MENDED="1", **environment).start()
    done = await dlq(ledger, "replay", "--all", "--yes", "--reason", "mended", **environment)
    assert (done.code, len(replayed)) == (0, 4), done.err
    await ledger.drained()
    whole = {account: [f"{account}/{n}" for n in range(20)] for account in accounts}
    whole[dropped].remove(f"{dropped}/{bad_at[dropped]}")
    assert await settled_by_key(ledger) == whole, f"seed {seed}"
    assert await worker.stopped() == 0


async def letters_of(ledger: Ledger) -> set[str]:
    lines = await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
    return {json.loads(line.value or b"")["account"] for line in lines}


async def settled_by_key(ledger: Ledger) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in await logs.read(ledger.bootstrap, ledger.sink):
        found.setdefault((line.key or b"").decode(), []).append(json.loads(line.value or b"")["id"])
    return found


async def until(look: Callable[[], Awaitable[Any]], wanted: Any, within_s: float = 30.0) -> None:
    for _ in range(int(within_s * 4)):
        with contextlib.suppress(KafkaError):
            if await look() == wanted:
                return
        await asyncio.sleep(0.25)
    assert await look() == wanted


async def test_of_two_tools_at_once_one_goes_on(kafka: LocalKafka, make_ledger: MakeLedger) -> None:
    ledger = await make_ledger(kafka, target="mending:pipeline")
    await dead(ledger, [bad(n) for n in range(600)])
    worker = ledger.worker("w1", log="mended", MENDED="1").start()
    await worker.ready()
    slow = asyncio.create_task(dlq(ledger, "replay", "--all", "--yes", "--rate", "20", "--as", "first"))
    async with asyncio.timeout(60):
        while f"{ledger.name}-audit" not in await logs.topics(ledger.bootstrap) or not await audited(ledger):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    second = await dlq(ledger, "replay", "--all", "--yes", "--rate", "0", "--as", "second")
    first = await slow
    assert (first.code, second.code) == (1, 0), (first.err, second.err)
    assert "another `semel dlq` acts on the dead letters of" in first.err
    await ledger.drained()
    assert await settled(ledger) == {f"bad-{n}": 1 for n in range(600)}
    assert {entry["by"] for entry in await audited(ledger)} == {"first", "second"}
    assert await worker.stopped() == 0
