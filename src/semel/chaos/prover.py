"""The proof at the end of a run, as this package needs it: its verdict and its sentences."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from semel import proof
from semel.kafka import KafkaBroker
from semel.plan import Plan
from semel.runtime.clock import SystemClock

TELL_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Proved:
    """`verdict`: clean, violated or unprovable. `findings` and `summary` are sentences; `html` stands in the report."""

    verdict: str
    findings: tuple[str, ...]
    summary: tuple[str, ...]
    document: Mapping[str, Any]
    html: str = ""


async def prove(broker: KafkaBroker, plan: Plan, recording: proof.Recording, progress: Callable[[str], None]) -> Proved:
    """`recording`: what the run kept of its input. RpcLost where no broker answers; SemelError where the topics cannot be
    understood.
    """
    told = time.monotonic()

    def tell(how_far: proof.Progress) -> None:
        nonlocal told
        if time.monotonic() > told + TELL_EVERY_S:
            told = time.monotonic()
            progress(f"proof: {how_far.phase}, {how_far.done:,} of {how_far.total:,} records read")

    found = await proof.prove(broker, plan, SystemClock(), progress=tell, recording=recording)
    document = found.to_json()
    findings = tuple(
        f"{finding['law']}: {finding['sentence']}"
        + "".join(f"\n  {w['topic']}[{w['partition']}]@{w['offset']}: {w['what']}" for w in finding["witnesses"])
        for finding in document["findings"]
    )
    said = found.text().splitlines()
    summary = (said[0], *(line.strip() for line in said if line.startswith("  note:")))
    return Proved(found.verdict.value, findings, summary, document, proof.html(found))
