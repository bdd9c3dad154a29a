"""Faust's transport, with the engine behind it. Registered for the URL scheme `semel://`.

Faust believes that it has a consumer and a producer. The consumer runs the engine, which reads, commits and restores by
itself; the producer sends nothing: whatever is sent through Faust becomes part of an epoch (`faust_.topic`).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportMissingParameterType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportMissingTypeStubs=false
from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import faust.transport.base
import faust.transport.consumer
import faust.transport.producer
from faust.transport.drivers import TRANSPORTS
from faust.types import TP
from mode import Service

from semel.faust_.settings import SCHEME

TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"


class Consumer(faust.transport.consumer.Consumer):
    """Runs the engine from the moment Faust would subscribe until the app stops. Acks, offsets, seeks: none of them."""

    _engine_task: asyncio.Task[None] | None = None

    async def subscribe(self, topics: Iterable[str]) -> None:
        """All agents and tables are known now: the engine can start."""
        if self._engine_task is None:
            self._engine_task = self.add_future(self._run_engine())  # pyright: ignore[reportAttributeAccessIssue]

    async def _run_engine(self) -> None:
        app: Any = self.app
        try:
            await app.run_engine()
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            app.failed(exc)
            if not app.supervised:
                await app.crash(exc)

    async def on_stop(self) -> None:
        app: Any = self.app
        await app.stop_engine()

    # What stock Faust asks of a consumer; the engine has its own answers.

    def assignment(self) -> set[TP]:
        return set()

    def _get_active_partitions(self) -> set[TP]:
        return set()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Offsets travel in the engine's transactions only."""
        return False

    force_commit = commit

    async def wait_empty(self) -> None:
        return

    async def perform_seek(self) -> None:
        return

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return False

    @Service.task
    async def _commit_handler(self) -> None:
        return

    @Service.task
    async def _commit_livelock_detector(self) -> None:
        return

    def verify_event_path(self, now: float, tp: TP) -> None:
        return

    def highwater(self, tp: TP) -> int:
        engine = getattr(self.app, "engine", None)
        feed = engine.fetcher.feeds.get((tp.topic, tp.partition)) if engine is not None else None
        return feed.high_watermark if feed is not None else -1

    def topic_partitions(self, topic: str) -> int | None:
        engine = getattr(self.app, "engine", None)
        known = engine.topics.known.get(topic) if engine is not None else None
        return known.partitions if known is not None else None

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        from semel.partitioner import partition_of

        count = self.topic_partitions(topic)
        if partition is not None or key is None or count is None:
            return partition
        return partition_of(key, count)

    def close(self) -> None:
        return

    # Abstract in Faust's class. Nothing of semel's calls them; who does learns why.

    def _not_ours(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "positions are kept by semel's engine; see GET /pipelines, or `semel reset` to move them"
        )

    _getmany = _new_topicpartition = _seek = _to_message = create_topic = earliest_offsets = highwaters = position = (
        _not_ours
    )
    seek_to_committed = seek_wait = _not_ours


class Producer(faust.transport.producer.Producer):
    """Sends nothing. `faust_.topic` hands every message to the engine."""

    def create_threaded_producer(self) -> Service:
        """Faust starts one beside this where `producer_threaded` is set; it has nothing to send."""
        return Service()

    async def on_start(self) -> None:
        return

    async def flush(self) -> None:
        return

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("semel sends through the engine's epochs only; use a topic or app.send")

    send_and_wait = send

    def send_soon(self, fut: Any) -> None:
        raise NotImplementedError("semel sends through the engine's epochs only; use a topic or app.send")

    async def create_topic(self, topic: str, partitions: int, replication: int, **kwargs: Any) -> None:
        app: Any = self.app
        await app.create_topic(topic, partitions, replication, kwargs.get("config") or {})

    def supports_headers(self) -> bool:
        return True

    def key_partition(self, topic: str, key: bytes) -> TP:
        consumer: Any = self.app.consumer
        return TP(topic, consumer.key_partition(topic, key) or 0)


class Transport(faust.transport.base.Transport):
    """The stock conductor stays: it tells when all agents have started. The fetcher never runs."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    Producer: ClassVar[type[Producer]] = Producer
    default_port = 9092
    driver_version = "semel"
