"""Results of another app where this one's are to go: said at the first start, once, and only where both have one source."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Pipeline, Topic
from tests.unit.harness import Payment, World


def pipeline(name: str, source: str = "payments") -> Pipeline:
    async def note(payment: Payment) -> dict[str, Any]:
        return {"id": payment.id}

    return Pipeline(
        name,
        source=Topic(source, key=str, value=Payment),
        dedup=Dedup("id", window=timedelta(days=1)),
        agent=note,
        sink=Topic("notes", key=str, value=dict),
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "has results of the app" in r.getMessage()]


async def test_a_renamed_pipeline_is_told_that_results_of_its_former_name_are_in_its_sink(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(20):
        world.pay(f"a{n}")
    await world.ran(pipeline("former"))
    assert warnings(caplog) == []
    await world.ran(pipeline("renamed"))
    [line] = warnings(caplog)
    assert line.startswith("notes has results of the app 'former' from payments, which 'renamed' reads, too.")
    # It is no first start any more.
    await world.ran(pipeline("renamed"))
    assert len(warnings(caplog)) == 1


async def test_an_app_with_another_source_into_the_same_topic_is_no_predecessor(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.cluster.create_topic("others", 1)
    world.pay("a1")
    await world.ran(pipeline("former"))
    await world.ran(pipeline("second", "others"))
    assert warnings(caplog) == []


async def test_who_may_not_read_its_sink_begins_all_the_same(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pay("a1")
    await world.ran(pipeline("former"))
    world.cluster.faults.deny("notes", "Read")
    await world.ran(pipeline("renamed"))
    assert warnings(caplog) == []
