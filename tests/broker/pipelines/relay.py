"""A `semel.App` without tables, whose outputs go to other partitions than their events came from. Named by `PIPELINE`."""

from __future__ import annotations

import os

from semel import App

NAME = os.environ["PIPELINE"]

app = App(NAME, autodiscover=False)
payments = app.topic(f"{NAME}.payments", key_type=bytes, value_serializer="json")
settlements = app.topic(f"{NAME}.settlements", key_type=bytes, value_serializer="json", partitions=7)


@app.agent(payments)
async def relay(stream):
    async for payment in stream:
        await settlements.send(key=payment["id"].encode(), value=payment)
