"""The payments pipeline on stock faust-streaming, as its users write it: a table of the ids seen, a table of balances.

Settings come by the environment, because Faust's command line takes the rest.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable

import faust
import orjson

app = faust.App(
    "stock-faust-payments",
    broker=f"kafka://{os.environ['CHAOS_BROKER'].replace(',', ';')}",
    datadir=os.environ["CHAOS_STATE"],
    store="rocksdb://",
    processing_guarantee=os.environ["CHAOS_GUARANTEE"],
    broker_session_timeout=6,
    broker_heartbeat_interval=2,
    topic_partitions=4,
    topic_replication_factor=1,
    topic_disable_leader=True,
)
source = app.topic(os.environ["CHAOS_SOURCE"], key_serializer="raw", value_serializer="raw")
sink = app.topic(os.environ["CHAOS_SINK"], key_serializer="raw", value_serializer="raw", partitions=4)
seen = app.Table("seen", default=int, partitions=4, options={"driver": "rocksdict"})
balances = app.Table("balances", default=int, partitions=4, options={"driver": "rocksdict"})


@app.agent(source)
async def settle(payments: AsyncIterable[bytes]) -> None:
    async for raw in payments:
        payment = orjson.loads(raw)
        if payment["id"] in seen:
            continue
        seen[payment["id"]] = 1
        account = payment["account"]
        balances[account] += payment["amount"]
        settled = {"id": payment["id"], "account": account, "balance": balances[account]}
        await sink.send(key=account.encode(), value=orjson.dumps(settled))
