"""Results never go where another app keeps its state, and to every topic that is only called so."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Output, Pipeline, Table, Topic
from semel.errors import ConfigError
from semel.port import TP
from tests.unit.harness import Payment, World

STATE = ["world-positions", "world-sums-changelog", "world-dedup-changelog"]


def keeper(name: str = "world") -> Pipeline:
    sums = Table("sums", key=str, value=int, default=int)

    def add(payment: Payment) -> None:
        sums[payment.account] += 1

    dedup = Dedup("id", window=timedelta(days=1))
    return Pipeline(name, source=Topic("payments", key=str, value=Payment), dedup=dedup, agent=add, tables=[sums])


def writer(sink: str | None, named: str | None = None, dead_letters: str | None = None) -> Pipeline:
    def note(payment: Payment) -> Any:
        return {"id": payment.id} if named is None else Output({"id": payment.id}, topic=Topic(named))

    return Pipeline(
        "writer", source=Topic("payments", key=str, value=Payment), agent=note, sink=Topic(sink) if sink else None,
        dead_letters=Topic(dead_letters) if dead_letters else None,
    )  # fmt: skip


def records(world: World, topic: str) -> int:
    return sum(len(part) for part in world.cluster.committed(topic))


@pytest.mark.parametrize("state", STATE)
async def test_a_sink_that_holds_another_apps_state_is_refused_at_the_start(world: World, state: str) -> None:
    world.pay("a1")
    await world.ran(keeper())
    before = records(world, state)
    world.pipeline = writer(state)
    error = await world.start("w2").gone()
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"app 'world' keeps its state in topic {state!r}")
    assert records(world, state) == before


@pytest.mark.parametrize("state", STATE)
async def test_dead_letters_that_are_to_go_to_another_apps_state_are_refused_at_the_start(
    world: World, state: str
) -> None:
    world.pay("a1")
    await world.ran(keeper())
    world.pipeline = writer("settled", dead_letters=state)
    error = await world.start("w2").gone()
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"app 'world' keeps its state in topic {state!r}")


async def test_two_pipelines_may_share_a_topic_of_dead_letters(world: World) -> None:
    for name in ("one", "two"):
        world.write(b"no JSON", "a1")
        source = Topic("payments", key=str, value=Payment)
        shared = Topic("dlq.shared", partitions=1, configs={"retention.ms": "86400000"})
        await world.ran(Pipeline(name, source=source, agent=lambda payment: None, dead_letters=shared))
    [letters] = world.cluster.committed("dlq.shared")
    assert [dict(letter.headers)["semel.pipeline"] for letter in letters] == [b"one", b"two", b"two"]


@pytest.mark.parametrize("state", STATE)
async def test_an_output_named_into_another_apps_state_is_dead_lettered(world: World, state: str) -> None:
    world.pay("a1")
    await world.ran(keeper())
    before = records(world, state)
    await world.ran(writer(None, named=state))
    letters = [r for part in world.cluster.committed("writer.dlq") for r in part]
    assert len(letters) == 1
    assert b"app 'world' keeps its state in topic" in dict(letters[0].headers)["semel.error"]
    assert records(world, state) == before


@pytest.mark.parametrize("name", [*STATE, "-positions", "-changelog", "changelog"])
async def test_an_ordinary_topic_may_be_called_as_state_is(world: World, name: str) -> None:
    world.cluster.create_topic(name, world.partitions, {"cleanup.policy": "compact"})
    world.cluster.write(TP(name, 0), [(b"position", b'{"lat": 1}')])
    world.pay("a1")
    await world.ran(keeper("another"))
    before = records(world, name)
    await world.ran(writer(name))
    assert records(world, name) == before + 1


async def test_the_topic_of_an_app_that_is_gone_is_an_ordinary_one(world: World) -> None:
    world.pay("a1")
    await world.ran(keeper())
    world.cluster.delete_topics(["world-positions"])
    before = records(world, "world-sums-changelog")
    await world.ran(writer("world-sums-changelog"))
    assert records(world, "world-sums-changelog") == before + 1
