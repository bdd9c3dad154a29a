"""Faust's Topic, sending through the engine: within an event into its write set, else into the outbox (rule 4)."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false, reportMissingTypeStubs=false
# pyright: reportMissingTypeArgument=false
from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Generator, Mapping
from functools import partial
from typing import Any, cast

import faust
from faust.types.tuples import TP, FutureMessage, RecordMetadata
from mode.utils.times import want_seconds

from semel.errors import CommitError, DeclarationError, OutputRefused, StaleIncarnation
from semel.faust_.arguments import TOPIC, check
from semel.faust_.settings import partitions_of
from semel.output import header, pairs_of
from semel.stages.sink.destination import ProducerRecord
from semel.state import lineage
from semel.state.event_context import current_context, event_number, refuse_waiting_for_commit
from semel.topic import Topic as SemelTopic

log = logging.getLogger("semel.app")


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

    def __init__(self, app: Any, **given: Any) -> None:
        check(TOPIC, f"topic {self._label(given)}", given)
        wanted, factor = given.get("replicas"), app.semel_settings.replication_factor
        if wanted and wanted != factor:
            raise DeclarationError(
                f"topic {self._label(given)}: replicas={wanted} is not said of one topic on semel; set "
                f"replication_factor={wanted}, which holds for every topic that semel creates"
            )
        super().__init__(app, **given)

    @staticmethod
    def _label(given: Mapping[str, Any]) -> str:
        return ", ".join(map(repr, given.get("topics") or ())) or repr(given.get("pattern"))

    def as_output(self) -> SemelTopic:
        """The topic as the engine creates it, where it is missing."""
        conf: Any = cast("Any", self.app).conf
        configs = {name: str(value) for name, value in (self.config or {}).items()}
        cleanup = [name for name, on in (("compact", self.compacting), ("delete", self.deleting)) if on]
        if cleanup:
            configs.setdefault("cleanup.policy", ",".join(cleanup))
        if self.retention:
            configs.setdefault("retention.ms", str(int(want_seconds(self.retention) * 1000)))
        partitions = self.partitions or partitions_of(conf)
        return SemelTopic(self.get_topic_name(), key=bytes, value=bytes, partitions=partitions, configs=configs)

    async def send(self, *, key: Any = None, value: Any = None, partition: int | None = None,
                   timestamp: float | None = None, headers: Any = None, schema: Any = None, key_serializer: Any = None,
                   value_serializer: Any = None, callback: Any = None, force: bool = False) -> Any:  # fmt: skip
        app: Any = self.app
        engine = app.engine
        if engine is None:
            raise CommitError(f"nothing can be sent to {self.get_topic_name()!r} yet: the worker has not started")
        if engine.topics.destinations.get(self.get_topic_name()) is None:
            await engine.open_destination(self.as_output())
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
        given = [*pairs_of(headers)]
        open_headers: Any = dict(given)
        raw_key, open_headers = self.prepare_key(key, key_serializer, schema, open_headers)
        raw_value, open_headers = self.prepare_value(value, value_serializer, schema, open_headers)
        try:
            # Serializers see and make headers by name; what they leave alone keeps also those of one name.
            before, after = dict(given), open_headers or {}
            alone = {k for k in after if k in before and after[k] is before[k]}
            made = [(k, v) for k, v in after.items() if k not in alone]
            pairs = [header(k, v) for k, v in (*(pair for pair in given if pair[0] in alone), *made)]
        except (TypeError, ValueError) as exc:
            raise OutputRefused(f"send to {name!r}: {exc}") from exc
        engine = app.engine
        destination = engine.topics.destinations.get(name) if engine is not None else None
        if engine is None or destination is None:
            raise CommitError(
                f"send_soon to {name!r} before its partitions are known; use `await topic.send(...)`, or declare the topic "
                "at module level so that the worker knows it at start"
            )
        context, number = current_context.get(), event_number.get()
        held = context if context is not None and context.mine else None
        if held is not None and not held.alive:
            raise StaleIncarnation("the event in hand was given up")
        now_ms = int(engine.clock.time() * 1000)
        stamp = now_ms if timestamp is None else int(timestamp * 1000)
        if not 0 <= stamp < 2**63:
            raise OutputRefused(f"send to {name!r}: timestamp={timestamp!r}; give seconds since 1970")
        record, home = None, 0
        origin = (lineage.HEADER, lineage.sent(engine.app)) if engine.settings.lineage else None
        if held is not None:
            # What is sent names its key and headers itself; only its lineage asks which event of a batch it is from.
            record = held.batch[-1][1] if held.record is None else held.record
            home, origin = held.task.partition, held.lineage(record)
        if partition is None and app.conf.producer_partitioner is not None:
            every = list(range(destination.partitions))
            partition = app.conf.producer_partitioner(raw_key, every, every)
        out: ProducerRecord = destination.checked(raw_key, raw_value, pairs, stamp, home, now_ms, partition, origin)
        pending = self.as_future_message(key=key, value=value, partition=partition, timestamp=timestamp, headers=headers,
                                         schema=schema, key_serializer=key_serializer, value_serializer=value_serializer,
                                         callback=callback).message  # fmt: skip
        message = Sent(pending)
        metadata = RecordMetadata(name, out.tp.partition, TP(*out.tp), -1, stamp / 1000, 0)
        committed: asyncio.Future[None] | None = None
        if held is not None:
            held.emit(out, record)
        elif context is None or not number:
            committed = engine.outbox(out)
        else:
            committed = engine.follow(context, number, out)
        if committed is None:
            message.set_result(metadata)
            if callback is not None and context is not None:
                context.history.told.append((number, partial(self._tell, message)))
            return message

        def settle(done: asyncio.Future[None]) -> None:
            if message.done() or done.cancelled():
                return
            failed = done.exception()
            if failed is not None:
                message.set_exception(failed)
                return
            message.set_result(metadata)
            if callback is not None:
                self._tell(message)

        committed.add_done_callback(settle)
        return message

    def _tell(self, message: FutureMessage) -> None:
        """Faust's `callback=`, once what was sent is committed. An error in it is the caller's own, and is logged."""
        callback: Any = message.message.callback
        try:
            waiting = callback(message)
        except Exception:
            log.exception("callback= of a message to %s", self.get_topic_name())
            return
        if inspect.isawaitable(waiting):
            cast("Any", self.app).add_future(waiting)

    async def maybe_declare(self) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        # Faust's conductor asks for its own topics before there is an engine, which sees to them.
        app: Any = self.app
        if app.engine is not None:
            await self.declare()

    async def declare(self) -> None:
        app: Any = self.app
        wanted = self.as_output()
        factor = app.semel_settings.replication_factor or 0
        await app.create_topic(wanted.name, wanted.partitions or app.conf.topic_partitions, factor, wanted.configs)
