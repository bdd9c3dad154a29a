"""Deletion of topics as controllers answer it: what counts as gone, and clusters whose topics have no ids."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest

from semel.codes import Code
from semel.kafka import KafkaBroker, apis
from semel.kafka.wire import Call
from semel.port import RpcError, TopicInfo

NO_ID = "0" * 32
ID = "0123456789abcdef" * 2


class Controller:
    """Answers a deletion with these codes, row by row as Kafka does; the metadata show nothing any more."""

    def __init__(self, broker: KafkaBroker, *codes: int, named: bool = True) -> None:
        self.codes, self.named = codes, named
        self.asked: list[tuple[str | None, bytes]] = []
        client = broker._client
        client.cluster.controller = 1
        client.ask = self.ask  # pyright: ignore[reportAttributeAccessIssue]
        client.metadata = self.metadata  # pyright: ignore[reportAttributeAccessIssue]

    async def ask(self, node: int, call: Call, deadline: float) -> Any:
        assert call.api is apis.DELETE_TOPICS
        rows: Any = call.api.request.decode(BytesIO(call.api.request.encode(call.values)))[0]
        self.asked += rows
        answers = [
            (name if self.named else None, topic_id, code, None)
            for (name, topic_id), code in zip(rows, self.codes, strict=True)
        ]
        return 0, answers

    async def metadata(self, names: Sequence[str] | None, deadline: float) -> Any:
        rows = [(Code.UNKNOWN_TOPIC_OR_PARTITION, name, bytes(16), False, [], 0) for name in names or ()]
        return 0, [], None, 1, rows, 0


@pytest.mark.parametrize("code", [0, Code.UNKNOWN_TOPIC_ID, Code.UNKNOWN_TOPIC_OR_PARTITION])
@pytest.mark.parametrize("id", [ID, NO_ID], ids=["by id", "by name"])
async def test_a_topic_that_the_controller_does_not_know_is_gone(code: int, id: str) -> None:
    broker = KafkaBroker("127.0.0.1:1")
    Controller(broker, code)
    await broker.delete_topics([TopicInfo("gone", id, 1)])


async def test_a_topic_with_an_id_is_deleted_by_it_and_one_without_by_its_name() -> None:
    broker = KafkaBroker("127.0.0.1:1")
    controller = Controller(broker, 0, 0)
    await broker.delete_topics([TopicInfo("old", NO_ID, 1), TopicInfo("new", ID, 1)])
    assert controller.asked == [("old", bytes(16)), (None, bytes.fromhex(ID))]


async def test_two_topics_without_ids_are_both_deleted() -> None:
    broker = KafkaBroker("127.0.0.1:1")
    controller = Controller(broker, 0, 0)
    await broker.delete_topics([TopicInfo("one", NO_ID, 1), TopicInfo("two", NO_ID, 1)])
    assert [name for name, _ in controller.asked] == ["one", "two"]


@pytest.mark.parametrize(("id", "named"), [(ID, False), (ID, True), (NO_ID, True)])
async def test_a_refused_deletion_names_the_topic(id: str, named: bool) -> None:
    broker = KafkaBroker("127.0.0.1:1")
    Controller(broker, Code.TOPIC_AUTHORIZATION_FAILED, named=named)
    with pytest.raises(RpcError, match="topic balances"):
        await broker.delete_topics([TopicInfo("balances", id, 1)])
