"""What tools do to a cluster and no worker needs: by aiokafka's own client, off the port that the engine hangs on."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from semel.port import RpcError, RpcLost

_API = "AlterConfigs"


async def set_topic_configs(
    bootstrap: str, topic: str, configs: Mapping[str, str], *, rpc_timeout_ms: int = 4000
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
        for code, message, *_ in answer.resources:
            if code:
                raise RpcError(_API, code, message or "")
