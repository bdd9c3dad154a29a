"""Which Apps can be tortured, and what is made of them."""

from __future__ import annotations

from itertools import islice
from typing import Any

import faust
import orjson
import pytest

from semel import App
from semel.chaos.generated import from_types
from semel.chaos.subject import subject
from semel.errors import ConfigError


class Order(faust.Record):  # pyright: ignore[reportMissingTypeArgument]
    id: str
    total: int


async def agent(stream: Any) -> None:
    async for _ in stream:
        pass


def test_an_app_with_one_agent_on_one_topic_is_fed_by_that_topic_s_types() -> None:
    shop = App("shop")
    shop.agent(shop.topic("orders", key_type=str, value_type=Order, partitions=3))(agent)
    found = subject("shop:app", shop)
    assert (found.name, found.source.name, found.source.partitions, found.dedup) == ("shop", "orders", 3, None)
    made = from_types(found, 1, lambda: 1_800_000_000_000)
    first, second = islice(made.originals, 2)
    assert first.key is not None
    assert first.key.startswith(b"key-")
    one, other = orjson.loads(first.value or b""), orjson.loads(second.value or b"")
    assert {"id", "total"} <= one.keys()
    assert one != other
    assert found.source.value.decode(first.value or b"") == Order(one["id"], one["total"])


def test_an_app_without_an_agent_is_refused() -> None:
    with pytest.raises(ConfigError, match="agents of app 'shop' that read topics are none"):
        subject("shop:app", App("shop"))


def test_an_app_with_two_agents_is_refused_by_their_names() -> None:
    shop = App("shop")
    orders = shop.topic("orders", value_type=int)
    shop.agent(orders, name="add")(agent)
    shop.agent(orders, name="count")(agent)
    with pytest.raises(ConfigError, match="add, count; semel chaos takes an App with one"):
        subject("shop:app", shop)


def test_an_app_that_reads_two_topics_is_refused_by_their_names() -> None:
    shop = App("shop")
    shop.agent(shop.topic("orders", "returns", value_type=int))(agent)
    with pytest.raises(ConfigError, match="reads orders, returns; semel chaos feeds one topic"):
        subject("shop:app", shop)


def test_an_app_whose_agent_has_no_topic_but_its_own_is_refused() -> None:
    shop = App("shop")
    shop.agent(name="inner")(agent)
    with pytest.raises(ConfigError, match="reads a topic of its own"):
        subject("shop:app", shop)
