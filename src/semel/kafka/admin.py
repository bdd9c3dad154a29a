"""What tools do to a cluster and no worker needs: off the port that the engine hangs on."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from semel.kafka import apis
from semel.kafka.client import Client
from semel.kafka.wire import Answer, Call
from semel.port import RpcError, RpcLost

_API = "AlterConfigs"
_TIMEOUT_MS = 4000

Resource = Literal["topic", "group", "cluster", "transactional id"]
Operation = Literal["All", "Read", "Write", "Create", "Describe", "DescribeConfigs"]
# Kafka's numbers of them.
_RESOURCES: dict[Resource, int] = {"topic": 2, "group": 3, "cluster": 4, "transactional id": 5}
_OPERATIONS: dict[Operation, int] = {"All": 2, "Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
_LITERAL = 3
_DENIED, _ALLOWED = 2, 3


async def set_topic_configs(
    bootstrap: str, topic: str, configs: Mapping[str, str], *, rpc_timeout_ms: int = _TIMEOUT_MS
) -> None:
    """Set these of a topic; all others of it go back to what the brokers have as defaults. RpcError, RpcLost."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=rpc_timeout_ms)
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict(configs))
    try:
        await admin.start()
        answers = cast("list[Any]", await admin.alter_configs([resource]))
    except (KafkaError, OSError, TimeoutError) as error:
        raise RpcLost(_API, repr(error)) from error
    finally:
        await admin.close()
    for answer in answers:
        _refuse(_API, ((code, message) for code, message, *_ in answer.resources))


async def set_quota(bootstrap: str, client_ids: Iterable[str], quota: str, most: float | None) -> None:
    """`quota` (producer_byte_rate, consumer_byte_rate, request_percentage) of each of these clients on each broker; None:
    none any more. RpcError, RpcLost.
    """
    ops = [(quota, most or 0.0, most is None)]
    entries = [([("client-id", client)], ops) for client in client_ids]
    answer = await _asked(bootstrap, apis.ALTER_CLIENT_QUOTAS(entries, False))
    _refuse(apis.ALTER_CLIENT_QUOTAS.name, ((code, text) for code, text, _ in answer[1]))


class Acl(NamedTuple):
    """A right on one resource that a principal (`User:name`) is given, or denied, from whatever host. Denied wins."""

    resource: Resource
    name: str
    principal: str
    operation: Operation
    allows: bool

    @property
    def row(self) -> tuple[Any, ...]:
        """As requests have it."""
        resource, operation = _RESOURCES[self.resource], _OPERATIONS[self.operation]
        return resource, self.name, _LITERAL, self.principal, "*", operation, _ALLOWED if self.allows else _DENIED


async def add_acls(bootstrap: str, acls: Iterable[Acl]) -> None:
    """Also where they are there already. RpcError, RpcLost."""
    answer = await _asked(bootstrap, apis.CREATE_ACLS([acl.row for acl in acls]))
    _refuse(apis.CREATE_ACLS.name, answer[1])


async def remove_acls(bootstrap: str, acls: Iterable[Acl]) -> None:
    """Also where they are not there. RpcError, RpcLost."""
    answer = await _asked(bootstrap, apis.DELETE_ACLS([acl.row for acl in acls]))
    _refuse(apis.DELETE_ACLS.name, ((code, text) for code, text, _ in answer[1]))
    _refuse(apis.DELETE_ACLS.name, ((code, text) for _, _, matching in answer[1] for code, text, *_ in matching))


async def _asked(bootstrap: str, call: Call) -> Answer:
    client = Client(bootstrap, client_id="semel-admin", rpc_timeout_ms=_TIMEOUT_MS, security=None)
    try:
        return await client.ask_any(call, client.deadline())
    finally:
        await client.close()


def _refuse(api: str, answers: Iterable[tuple[int, str | None]]) -> None:
    for code, text in answers:
        if code:
            raise RpcError(api, code, text or "")
