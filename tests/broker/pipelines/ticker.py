"""A `semel.App` as Faust code is written: an agent with a table that sends, and a timer that sends.

Named by `PIPELINE`; `TICK_S` is the timer's interval, none by default; `HANDLER_S` is how long an event takes, half of it
after its output is sent; `OPTIONS` are further options of the app, in JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets

from semel import App

NAME = os.environ["PIPELINE"]
TICK_S = float(os.environ.get("TICK_S", "0"))
HANDLER_S = float(os.environ.get("HANDLER_S", "0"))

app = App(NAME, autodiscover=False, **json.loads(os.environ.get("OPTIONS", "{}")))
payments = app.topic(f"{NAME}.payments", key_type=bytes, value_serializer="json")
settlements = app.topic(f"{NAME}.settlements", key_type=bytes, value_serializer="json")
ticks = app.topic(f"{NAME}.ticks", key_type=bytes, value_serializer="json")
balances = app.Table("balances", default=int)

process = secrets.token_hex(4)
ticked = 0


@app.agent(payments)
async def settle(stream):
    async for event in stream.events():
        payment = event.value
        balance = balances[payment["account"]] + payment["amount"]
        settlement = {"id": payment["id"], "account": payment["account"], "balance": balance}
        await asyncio.sleep(HANDLER_S / 2)
        await settlements.send(key=event.key, value=settlement, timestamp=event.message.timestamp)
        await asyncio.sleep(HANDLER_S / 2)
        balances[payment["account"]] = balance


if TICK_S:

    @app.timer(interval=TICK_S)
    async def tick():
        global ticked  # noqa: PLW0603
        ticked += 1
        await ticks.send(key=process.encode(), value={"tick": f"{process}-{ticked}"})
