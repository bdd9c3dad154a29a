"""Faust's Topic, sending through the engine: within an event into its write set, else into the carry-over (rule 4)."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false, reportMissingTypeStubs=false
# pyright: reportMissingTypeArgument=false
from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from typing import Any

import faust
from faust.types.tuples import TP, FutureMessage, RecordMetadata

from semel import lineage
from semel.errors import CommitError, OutputRefused, StaleIncarnation
from semel.hand import in_hand, refuse_waiting_for_commit
from semel.output import header
from semel.stages.sink import Out
from semel.topic import Topic as SemelTopic


class Sent(FutureMessage):
    """A message on its way. HandlingError where its commit is awaited inside an event (protocol rule 5)."""

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        if not self.done():
            refuse_waiting_for_commit(f"a message to {self.message.channel.get_topic_name()!r}")
        return super().__await__()


class Topic(faust.Topic):
    """What `send` returns can be awaited. Within an event it is resolved at once, with offset -1: the event's outputs get
    their offsets when its epoch commits, and waiting for that inside the event would wait for itself. Outside one it
    resolves after the commit."""

    async def send(self, *, key: Any = None, value: Any = None, partition: int | None = None,
                   timestamp: float | None = None, headers: Any = None, schema: Any = None, key_serializer: Any = None,
                   value_serializer: Any = None, callback: Any = None, force: bool = False) -> Any:  # fmt: skip
        app: Any = self.app
        engine = app.engine
        if engine is None:
            raise CommitError(f"nothing can be sent to {self.get_topic_name()!r} yet: the worker has not started")
        if engine.topics.destinations.get(self.get_topic_name()) is None:
            await engine.open_destination(
                SemelTopic(self.get_topic_name(), key=bytes, value=bytes, partitions=self.partitions)
            )
        return self._hand_over(
            key, value, partition, timestamp, headers, schema, key_serializer, value_serializer, callback
        )

    def send_soon(self, *, key: Any = None, value: Any = None, partition: int | None = None,
                  timestamp: float | None = None, headers: Any = None, schema: Any = None, key_serializer: Any = None,
                  value_serializer: Any = None, callback: Any = None, force: bool = False,
                  eager_partitioning: bool = False) -> Any:  # fmt: skip
        return self._hand_over(
            key, value, partition, timestamp, headers, schema, key_serializer, value_serializer, callback
        )

    def _hand_over(self, key: Any, value: Any, partition: int | None, timestamp: float | None, headers: Any,
                   schema: Any, key_serializer: Any, value_serializer: Any, callback: Any) -> FutureMessage:  # fmt: skip
        app: Any = self.app
        name = self.get_topic_name()
        open_headers: Any = dict(headers.items() if isinstance(headers, Mapping) else headers or ())
        raw_key, open_headers = self.prepare_key(key, key_serializer, schema, open_headers)
        raw_value, open_headers = self.prepare_value(value, value_serializer, schema, open_headers)
        try:
            pairs = [header(k, v) for k, v in (open_headers or {}).items()]
        except (TypeError, ValueError) as exc:
            raise OutputRefused(f"send to {name!r}: {exc}") from exc
        engine = app.engine
        destination = engine.topics.destinations.get(name) if engine is not None else None
        if engine is None or destination is None:
            raise CommitError(
                f"send_soon to {name!r} before its partitions are known; use `await topic.send(...)`, or declare the topic "
                "at module level so that the worker knows it at start"
            )
        hand = in_hand.get()
        within = hand is not None and hand.mine
        if hand is not None and not hand.alive:
            raise StaleIncarnation("the event in hand was given up")
        now_ms = int(engine.clock.time() * 1000)
        stamp = now_ms if timestamp is None else int(timestamp * 1000)
        if not 0 <= stamp < 2**63:
            raise OutputRefused(f"send to {name!r}: timestamp={timestamp!r}; give seconds since 1970")
        home = hand.task.partition if within and hand is not None else 0
        if within and hand is not None:
            # What is sent names its key and headers itself; only its lineage asks which event of a batch it is from.
            record = hand.batch[-1][1] if hand.record is None else hand.record
            origin = hand.lineage(record)
        else:
            record = None
            origin = (lineage.HEADER, lineage.sent(engine.app)) if engine.settings.lineage else None
        out: Out = destination.checked(raw_key, raw_value, pairs, stamp, home, now_ms, partition, origin)
        pending = self.as_future_message(key=key, value=value, partition=partition, timestamp=timestamp, headers=headers,
                                         schema=schema, key_serializer=key_serializer, value_serializer=value_serializer,
                                         callback=callback).message  # fmt: skip
        message = Sent(pending)
        metadata = RecordMetadata(name, out.tp.partition, TP(*out.tp), -1, stamp / 1000, 0)
        if within and hand is not None:
            hand.emit(out, record)
            message.set_result(metadata)
            return message
        committed: asyncio.Future[None] = engine.carry(out)

        def settle(done: asyncio.Future[None]) -> None:
            if message.done() or done.cancelled():
                return
            failed = done.exception()
            if failed is not None:
                message.set_exception(failed)
            else:
                message.set_result(metadata)

        committed.add_done_callback(settle)
        return message

    async def maybe_declare(self) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return

    async def declare(self) -> None:
        app: Any = self.app
        await app.create_topic(self.get_topic_name(), self.partitions or app.conf.topic_partitions, self.replicas or 0,
                               dict(self.config or {}))  # fmt: skip
