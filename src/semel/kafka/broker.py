"""The port on a real Kafka cluster."""

from __future__ import annotations

from semel.kafka.client import Client
from semel.kafka.groups import GroupCalls
from semel.kafka.logs import LogCalls
from semel.kafka.records import codec_number
from semel.kafka.security import Security
from semel.kafka.topics import TopicCalls
from semel.kafka.transactions import TransactionCalls
from semel.port import Broker
from semel.throttles import Throttles


class KafkaBroker(TopicCalls, LogCalls, TransactionCalls, GroupCalls, Broker):
    """`semel.port.Broker` on Kafka 3.1 and later.

    `bootstrap` is `host:port,host:port`. Every method ends within `rpc_timeout_ms`, plus what it is asked to
    wait for: `max_wait_ms` of a fetch, the rebalance timeout of joining and syncing. `compression` (none, gzip,
    snappy, lz4, zstd) is that of the batches we build. ConfigError where an argument cannot be meant.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str = "semel",
        rpc_timeout_ms: int = 2000,
        security: Security | None = None,
        compression: str | None = None,
    ) -> None:
        self._codec = codec_number(compression)
        self._rebalance_timeouts_ms = {}
        self._client = Client(bootstrap, client_id=client_id, rpc_timeout_ms=rpc_timeout_ms, security=security)

    @property
    def throttles(self) -> Throttles:
        return self._client.throttles

    async def start(self) -> None:
        """Connect. RpcLost(sent=False) where no broker answers, RpcError 35 where it is too old, 58 for a bad login."""
        await self._client.start()

    async def close(self) -> None:
        """Close every connection, for good; calls still waiting are lost."""
        await self._client.close()
