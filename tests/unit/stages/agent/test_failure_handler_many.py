"""Failures in numbers: a dependency that is down for a hundred thousand keys, and limits at which a partition waits (rule 3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any

import orjson

from semel import Pipeline, Retry, Table, Topic
from semel.runtime.settings import EngineSettings
from semel.worker.view import EngineView
from tests.unit.harness import APP, World

KEYS = 100_000


class Dependency:
    """`down`: whether it fails for an event of an account; `calls`: how often it was called; `answers`: how often
    it did not."""

    def __init__(self) -> None:
        self.down: Callable[[str], bool] = lambda account: True
        self.calls = self.answers = 0

    def __call__(self, account: str) -> None:
        self.calls += 1
        if self.down(account):
            raise ConnectionError("the database is down")
        self.answers += 1


class Outage:
    """A world whose pipeline depends on something that fails. `sent`: ids by account, in their order."""

    def __init__(self, path: Path, *, partitions: int) -> None:
        self.world = World(path, partitions=partitions)
        self.dependency = Dependency()
        self.world.pipeline = settling(self.dependency)
        self.sent: dict[str, list[str]] = defaultdict(list)
        self.count = 0

    def pay(self, account: str) -> None:
        self.count += 1
        id = f"p{self.count}"
        self.sent[account].append(id)
        self.world.write({"id": id, "account": account}, account)

    def results(self) -> dict[str, list[tuple[str, int]]]:
        """Ids and balances by account, as they were committed."""
        found: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for log in self.world.cluster.committed("settlements"):
            for record in log:
                result = orjson.loads(record.value or b"")
                found[(record.key or b"").decode()].append((result["id"], result["balance"]))
        return found

    def parked(self) -> int:
        return sum(at.parked for at in self.world.committed_positions().values())

    async def over(self) -> None:
        """The dependency is back, and everything is done."""
        self.dependency.down = lambda account: False
        await self.world.until(lambda: self.dependency.answers == self.count, within_s=300)
        await self.world.drained()

    def check(self) -> None:
        """Each event took effect once, those of a key in their order, and none is left or in the dead letters."""
        assert self.results() == {
            account: list(zip(ids, range(1, len(ids) + 1), strict=True)) for account, ids in self.sent.items()
        }
        assert not self.parked()
        assert not any(self.world.cluster.committed(f"{APP}.dlq"))


def settling(dependency: Dependency) -> Pipeline:
    balances = Table("balances", key=str, value=int, default=int)

    def settle(payment: dict[str, Any]) -> dict[str, Any]:
        balances[payment["account"]] += 1
        dependency(payment["account"])
        return {"id": payment["id"], "balance": balances[payment["account"]]}

    return Pipeline(
        APP, source=Topic("payments", key=str, value=dict), agent=settle, tables=[balances],
        sink=Topic("settlements", key=str, value=dict), retry=Retry(delays=(timedelta(minutes=1),), then="park"),
    )  # fmt: skip


async def test_a_dependency_that_is_down_for_100000_keys_costs_no_event_and_no_order(tmp_path: Path) -> None:
    """Also where the worker dies meanwhile: the next one has all of them due at once."""
    outage = Outage(tmp_path, partitions=2)
    world, dependency = outage.world, outage.dependency
    worker = world.start()
    await world.until_running(worker)
    for n in range(KEYS + KEYS // 20):
        outage.pay(f"account-{n % KEYS:06d}")
    await world.until(lambda: outage.parked() == outage.count)
    assert dependency.calls == KEYS, "whoever is behind another of its key is not tried"
    assert worker.engine.held_bytes()["source"] == 0
    worker.kill()
    await worker.gone()
    await world.clock.sleep(120)
    dependency.down = lambda account: False
    await world.until_running(world.start())
    await outage.over()
    assert dependency.calls == KEYS + outage.count
    outage.check()
    await world.close()


async def test_at_the_default_limit_a_partition_waits_and_the_others_go_on(tmp_path: Path) -> None:
    limit = 1_000
    partitions = EngineSettings().parked_limit // limit
    outage = Outage(tmp_path, partitions=partitions)
    world = outage.world
    worker = world.start()
    await world.until_running(worker)
    names = (f"account-{n:06d}" for n in count())
    full = list(islice((name for name in names if world.place(name).partition == 7), limit + 500))
    outage.dependency.down = set(full).__contains__
    for account in full:
        outage.pay(account)
    for n in range(300):
        outage.pay(f"other-{n}")
    await world.clock.sleep(20)
    others = [a for a in outage.sent if a.startswith("other") and world.place(a).partition != 7]
    assert set(outage.results()) == set(others)
    assert outage.parked() == limit, "no more than that"
    assert world.committed_positions()[7].topics["payments"].next == limit
    ready, said = EngineView(worker.engine).readiness()
    assert not ready
    assert "1000 events of this partition are parked, and 1000 is the limit (parked_limit)" in said["held_up"]["7"]
    await outage.over()
    assert EngineView(worker.engine).readiness()[0]
    outage.check()
    await world.close()


async def test_at_the_default_limit_of_a_key_its_partition_waits_and_goes_on_afterwards(tmp_path: Path) -> None:
    limit = EngineSettings().parked_key_limit
    outage = Outage(tmp_path, partitions=1)
    world = outage.world
    worker = world.start()
    await world.until_running(worker)
    outage.dependency.down = "stuck".__eq__
    for n in range(limit + 1_000):
        outage.pay("stuck")
        if n % 100 == 0:
            outage.pay(f"other-{n}")
    await world.clock.sleep(10)
    assert outage.parked() == limit
    assert "stuck" not in outage.results()
    assert limit // 100 <= len(outage.results()) <= limit // 100 + 1
    _, said = EngineView(worker.engine).readiness()
    assert (
        f"{limit} events of the key b'stuck' are parked, and {limit} is the limit (parked_key_limit)"
        in said["held_up"]["0"]
    )
    await outage.over()
    outage.check()
    await world.close()
