"""A `semel.App` in plain Faust: an agent with a table and an output, and a timer that sends. Named by `PIPELINE`."""

from __future__ import annotations

import os
import secrets

from semel import App

NAME = os.environ["PIPELINE"]

app = App(NAME, autodiscover=False)
payments = app.topic(f"{NAME}.payments", key_type=bytes, value_type=bytes, value_serializer="json")
settlements = app.topic(f"{NAME}.settlements", key_type=bytes, value_serializer="json")
ticks = app.topic(f"{NAME}.ticks", key_type=bytes, value_serializer="json")
balances = app.Table("balances", default=int)

process = secrets.token_hex(4)
ticked = 0


@app.agent(payments)
async def settle(stream):
    async for event in stream.events():
        payment = event.value
        balances[payment["account"]] += payment["amount"]
        balance = balances[payment["account"]]
        await settlements.send(
            key=event.key, value={"id": payment["id"], "account": payment["account"], "balance": balance}
        )


@app.timer(interval=0.05)
async def tick():
    global ticked  # noqa: PLW0603
    ticked += 1
    await ticks.send(key=process.encode(), value={"tick": f"{process}-{ticked}"})
