"""A real broker with an authorizer: what a worker may not do, it says at its start, with the commands that grant it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from semel.kafka.admin import Acl, add_acls
from semel.local import jars, ports
from semel.local.install import install
from semel.local.kafka import LocalKafka
from semel.local.properties import HOST, Node
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.logs import Message
from tests.broker.workers import USAGE

T = TypeVar("T")
AT_MS = 1_700_000_000_000
WORKERS = "User:workers"
LOGIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_workers="secret";'
SECURED = {
    "SEMEL_BROKER_SECURITY__PROTOCOL": "SASL_PLAINTEXT", "SEMEL_BROKER_SECURITY__SASL_MECHANISM": "PLAIN",
    "SEMEL_BROKER_SECURITY__USERNAME": "workers", "SEMEL_BROKER_SECURITY__PASSWORD": "secret",
}  # fmt: skip


async def patiently(request: Callable[[], Awaitable[T]]) -> T:
    for _ in range(100):
        try:
            return await request()
        except Exception:
            await asyncio.sleep(0.1)
    return await request()


async def test_rights_that_are_missing_are_all_named_before_a_worker_joins(
    make_ledger: MakeLedger, tmp_path: Path
) -> None:
    [secured] = ports.choose(1)

    def properties(node: Node) -> dict[str, str]:
        own, controller = f"BROKER://{HOST}:{node.port}", f"CONTROLLER://{HOST}:{node.controller_port}"
        return {
            "listeners": f"{own},SECURED://{HOST}:{secured},{controller}",
            "advertised.listeners": f"{own},SECURED://{HOST}:{secured}",
            "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secured.plain.sasl.jaas.config": LOGIN,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }

    install(jars.NEWEST)
    kafka = LocalKafka(tmp_path / "secured", version=jars.NEWEST, properties=properties)
    await asyncio.to_thread(kafka.start)
    try:
        ledger = await make_ledger(kafka, partitions=1)
        payments = [{"id": f"p{n}", "account": "a", "amount": n} for n in range(3)]
        await ledger.feed(Message(b"a", json.dumps(payment).encode(), (), AT_MS, 0) for payment in payments)

        def right(resource: Any, name: str, operation: Any) -> Acl:
            return Acl(resource, name, WORKERS, operation, allows=True)

        state = ("balances-changelog", "dedup-changelog", "parked", "timers", "positions")
        own = [f"{ledger.name}-{what}" for what in state]
        own += [ledger.dead_letter_topic, ledger.sink]
        to_begin: list[Acl] = [
            right("topic", ledger.source, "Read"), right("topic", ledger.source, "DescribeConfigs"),
            *(right("topic", name, op) for name in own for op in ("Create", "Describe", "DescribeConfigs")),
            *(right("topic", name, "Read") for name in own[:5]),
            *(right("topic", name, "Write") for name in (*own[:4], ledger.dead_letter_topic)),
        ]  # fmt: skip
        await patiently(lambda: add_acls(kafka.bootstrap, to_begin))

        at = f"{HOST}:{secured}"
        worker = ledger.worker(bootstrap=at, **SECURED).start()
        await worker.refuses(
            f"Write on the topic '{ledger.sink}' (its results)",
            f"Write on the topic '{ledger.positions}' (its state)",
            f"Read on the group '{ledger.name}'",
            f"Write on the transactional id '{ledger.name}-w1'",
            f"kafka-acls --add --allow-principal User:NAME --operation Write --topic {ledger.sink}",
            "TOPIC_AUTHORIZATION_FAILED, GROUP_AUTHORIZATION_FAILED, TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
            code=USAGE,
        )
        assert "generation" not in worker.log

        missing = [
            right("topic", ledger.sink, "Write"), right("topic", ledger.positions, "Write"),
            right("group", ledger.name, "Read"), right("transactional id", f"{ledger.name}-w1", "Describe"),
        ]  # fmt: skip
        await patiently(lambda: add_acls(kafka.bootstrap, missing))
        # Of a transactional id brokers say no more than whether there is any right on it; its writer says the rest.
        await (
            ledger.worker(bootstrap=at, log="again", **SECURED)
            .start()
            .refuses(f"no transactional writer '{ledger.name}-w1'", "TRANSACTIONAL_ID_AUTHORIZATION_FAILED")
        )

        await patiently(lambda: add_acls(kafka.bootstrap, [right("transactional id", f"{ledger.name}-w1", "Write")]))
        last = ledger.worker(bootstrap=at, log="last", **SECURED).start()
        await ledger.until_done(3)
        assert len(await logs.read(kafka.bootstrap, ledger.sink)) == 3
        assert await last.stopped() == 0
    finally:
        await asyncio.to_thread(kafka.stop, 2.0)
