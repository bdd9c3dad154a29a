"""The job on stock faust-streaming with `processing_guarantee="exactly_once"`, as its documentation has it.

Faust has no dedup of its own: a table of the ids seen does it, which is also what its users write. The settings come by
the environment, because Faust's command line takes the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterable
from pathlib import Path

import faust
import orjson

EXPECTED = int(os.environ["BENCHMARK_EVENTS"])
RESULT = Path(os.environ["BENCHMARK_RESULT"])

app = faust.App(
    "stock-faust",
    broker=f"kafka://{os.environ['BENCHMARK_BROKER']}",
    datadir=os.environ["BENCHMARK_STATE"],
    store="rocksdb://",
    processing_guarantee="exactly_once",
    topic_partitions=4,
    topic_replication_factor=1,
    topic_disable_leader=True,
    web_enabled=False,
)
source = app.topic(os.environ["BENCHMARK_SOURCE"], key_serializer="raw", value_serializer="raw")
sink = app.topic(os.environ["BENCHMARK_SINK"], key_serializer="raw", value_serializer="raw", partitions=4)
seen = app.Table("seen", default=int, partitions=4, options={"driver": "rocksdict"})


@app.agent(source)
async def shout(values: AsyncIterable[bytes]) -> None:
    done, started, cpu = 0, 0.0, 0.0
    async for value in values:
        if not done:
            started, cpu = time.perf_counter(), time.process_time()
        event = orjson.loads(value)
        key = event["id"]
        if key not in seen:
            seen[key] = 1
            event["merchant"] = event["merchant"].upper()
            await sink.send(key=key.encode(), value=orjson.dumps(event))
        done += 1
        if done == EXPECTED:
            spent, used = time.perf_counter() - started, time.process_time() - cpu
            # Not printed: Faust puts a logger in the place of standard output.
            draft = RESULT.with_suffix(".draft")
            draft.write_bytes(orjson.dumps({"events": done, "seconds": spent, "cpu_s": used}))
            draft.replace(RESULT)
