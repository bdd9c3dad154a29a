"""A `semel.App` with two agents on one topic; both give up what has no amount for them. Named by `PIPELINE`."""

from __future__ import annotations

import os

from semel import App, Reject

NAME = os.environ["PIPELINE"]

app = App(NAME, autodiscover=False)
payments = app.topic(f"{NAME}.payments", key_type=bytes, value_serializer="json")
settlements = app.topic(f"{NAME}.settlements", key_type=bytes, value_serializer="json")
audits = app.topic(f"{NAME}.audits", key_type=bytes, value_serializer="json")
balances = app.Table("balances", default=int)


@app.agent(payments)
async def settle(stream):
    async for event in stream.events():
        payment = event.value
        if payment["amount"] <= 100:
            raise Reject("too small to settle")
        balances[payment["account"]] += payment["amount"]
        await settlements.send(key=event.key, value=payment)


@app.agent(payments)
async def audit(stream):
    async for event in stream.events():
        if event.value["amount"] <= 50:
            raise Reject("too small to audit")
        await audits.send(key=event.key, value=event.value)
