"""Fencing: InitProducerId, after which nobody with the same transactional id can commit (protocol rule 9; KIP-98, KIP-447).

It also ends a transaction that they left open. The other fence, of a worker that has lost its partitions, is the generation
that `Writer` sends with the offsets.
"""

from __future__ import annotations

from semel.broker.asking import Pause, ask, passes
from semel.port import Broker, Clock, Producer
from semel.runtime.failpoints import Failpoints

_PAUSE = Pause(0.02, 0.2, retry_s=0.005)


async def fence(
    broker: Broker, clock: Clock, passing: Failpoints, transactional_id: str, *, timeout_ms: int, until: float
) -> Producer:
    """The producer that alone may use the id from now on. RpcError or RpcLost when time is up."""
    await passing("begin.before_init")
    producer = await ask(
        clock,
        lambda: broker.init_producer_id(transactional_id, timeout_ms),
        until=until,
        worth=passes,
        pause=_PAUSE,
    )
    await passing("begin.after_init")
    return producer
