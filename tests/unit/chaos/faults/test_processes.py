"""Workers that are asked to end within a commit, and come to it late, or not at all."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest

from semel.chaos.faults.processes import Term
from semel.chaos.fleet import Fleet
from semel.chaos.observed import Observed
from semel.chaos.timeline import Entry
from semel.chaos.workers import ChaosWorker


class Armed:
    """It stops where it is armed to: `when` it has run for a while, in the commit that SIGTERM brings, or never."""

    name, url, pid, expected_end = "w1", "http://w1", 1, True

    def __init__(self, when: str, code: int = 0) -> None:
        self.when, self.code = when, code
        self.armed = self.asked = self.stopped = self.frozen = False
        self.exit_code: int | None = None
        self.starts = 0

    @property
    def running(self) -> bool:
        return self.exit_code is None

    def log_end(self) -> str:
        return ""

    def start(self, *, failpoint: str = "") -> Self:
        self.armed, self.asked, self.exit_code = bool(failpoint), False, None
        self.starts += 1
        if self.when == "at work" and failpoint:
            self.stopped, self.armed = True, False
        return self

    def send(self, number: signal.Signals) -> None:
        assert number in (signal.SIGTERM, signal.SIGKILL)
        self.asked = True
        if number is signal.SIGTERM and self.armed and self.when == "in its last commit":
            self.stopped, self.armed = True, False
        self._ends()

    def thaw(self) -> None:
        # The stop of a commit that SIGTERM brings comes after the SIGCONT that was sent with it.
        if self.frozen or self.when == "at work":
            self.stopped = self.frozen = False
        self._ends()

    def _ends(self) -> None:
        if self.asked and not self.stopped:
            self.exit_code = self.code

    async def froze(self, within_s: float) -> bool:
        self.frozen = self.stopped
        return self.frozen

    async def term(self, within_s: float) -> int | None:
        self.send(signal.SIGTERM)
        code = self.exit_code
        await self.kill9()
        return code

    async def kill9(self) -> None:
        if self.running:
            self.exit_code = -9


@pytest.mark.parametrize(
    ("when", "bit", "note"),
    [("at work", True, ""), ("in its last commit", True, ""), ("never", False, "commit.after_produce was not passed")],
)
async def test_a_worker_may_come_to_the_step_where_it_stops_before_or_after_it_is_asked_to_end(
    when: str, bit: bool, note: str
) -> None:
    worker, entry = Armed(when), Entry(1, "term", "", "", 0.0)
    on = fleet(worker)
    await Term(1, 0.0, overlap=False, variant="SIGTERM within a commit", step="commit.after_produce").apply(on, entry)
    assert (on.findings, entry.bit, entry.note, worker.starts, worker.running) == ([], bit, note, 2, True)


async def test_one_that_does_not_end_in_order_is_a_finding() -> None:
    worker, entry = Armed("at work", code=1), Entry(1, "term", "", "", 0.0)
    on = fleet(worker)
    await Term(7, 0.0, overlap=False, variant="SIGTERM").apply(on, entry)
    [finding] = on.findings
    assert finding.startswith("w1 ended by itself with exit code 1")


def fleet(worker: Armed) -> Fleet:
    anything: Any = None
    brokers = cast("Any", SimpleNamespace(forgetful=False, away=()))
    return Fleet(
        plan=anything, broker=anything, cluster=brokers, workers=[cast("ChaosWorker", worker)], spare=[],
        observed=Observed("t", 1), load=anything, compaction=anything, views=anything, say=lambda said: None, goal="60 s",
    )  # fmt: skip
