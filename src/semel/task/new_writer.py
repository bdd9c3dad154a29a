"""A new writer, for tasks that are taken over: whoever had its id is fenced (protocol rules 9 and 11)."""

from __future__ import annotations

from semel.broker.asking import ask
from semel.errors import CommitError
from semel.port import Broker, Clock, RpcError, RpcLost
from semel.runtime import looptime
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.stages.commit.transaction import Writer
from semel.task.topics import Topics


async def new_writer(
    broker: Broker,
    clock: Clock,
    failpoints: Failpoints,
    topics: Topics,
    settings: EngineSettings,
    transactional_id: str,
) -> Writer:
    """A new writer: whoever had its id is fenced, what they left open is ended. CommitError where none is to be had."""

    async def taken() -> Writer:
        writer = Writer(
            broker,
            clock,
            failpoints,
            transactional_id,
            timeout_ms=settings.transaction_timeout_ms,
            commit_timeout_ms=settings.commit_timeout_ms,
            max_batch_bytes=topics.max_batch_bytes,
        )
        await writer.init(until=looptime.now() + settings.commit_timeout_ms / 1000)
        return writer

    def refused(exc: RpcError | RpcLost) -> CommitError:
        return CommitError(
            f"no transactional writer {transactional_id!r} is to be had: {exc}; allow this client to write under "
            "that transactional id, and keep transaction_timeout_ms below the broker's transaction.max.timeout.ms"
        )

    return await ask(clock, taken, giving_up=refused)
