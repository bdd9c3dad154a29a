"""Workers of a run that end by themselves: who is right to, who is started again, and what is a finding."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, cast

import pytest

from semel.chaos.fleet import AGAIN_S, GONE_S, LOOK_S, Fleet
from semel.chaos.observed import Observed
from semel.chaos.workers import ChaosWorker


class Ended:
    """A process that is gone."""

    name, url, pid, running, expected_end, frozen, starts = "w1", "http://w1", 1, False, False, False, 1

    def __init__(self, exit_code: int, said: str = "") -> None:
        self.exit_code = exit_code
        self._said = said

    def log_end(self) -> str:
        return self._said

    def start(self, *, failpoint: str = "") -> None:
        self.starts += 1


class Unhurt:
    forgetful, away = False, frozenset[int]()


def fleet(*workers: Ended) -> Fleet:
    anything: Any = None
    processes = [cast("ChaosWorker", worker) for worker in workers]
    return Fleet(
        plan=anything, broker=anything, cluster=cast("Any", Unhurt()), workers=processes, spare=[],
        observed=Observed("t", 1), load=anything, compaction=anything, views=anything, say=lambda said: None, goal="60 s",
    )  # fmt: skip


REFUSED = "ERROR Metadata was answered with error 29: TOPIC_AUTHORIZATION_FAILED: topic payments"


@pytest.mark.parametrize("code", [1, 2])
async def test_a_worker_that_ends_for_want_of_a_right_is_started_again_and_no_finding(code: int) -> None:
    ended = Ended(code, REFUSED)
    on = fleet(ended)
    on.rights_since = math.inf
    await on.supervise(cast("ChaosWorker", ended))
    assert (on.findings, on.unrightful, ended.starts) == ([], 1, 2)


@pytest.mark.parametrize(
    ("code", "said", "taken_s"),
    [(1, REFUSED, GONE_S + 1), (1, "ERROR Fetch was answered with error 3", 0.0), (4, REFUSED, 0.0)],
    ids=["long after it has the right again", "for another reason", "because its name is taken"],
)
async def test_any_other_end_is_a_finding(code: int, said: str, taken_s: float) -> None:
    ended = Ended(code, said)
    on = fleet(ended)
    on.rights_since = time.monotonic() - taken_s
    await on.supervise(cast("ChaosWorker", ended))
    assert (len(on.findings), on.unrightful, ended.starts) == (1, 0, 2)


def test_a_finding_is_said_when_it_is_found_without_the_log_that_goes_with_it() -> None:
    said: list[str] = []
    on = fleet()
    on.say = said.append
    on.report("w1 ended by itself with exit code 1; the end of w1.log:\n  and more")
    assert said == ["    0.0 s  finding: w1 ended by itself with exit code 1; the end of w1.log:"]
    assert on.findings == ["w1 ended by itself with exit code 1; the end of w1.log:\n  and more"]


async def test_a_guest_that_was_dismissed_meanwhile_is_not_started_again() -> None:
    ended = Ended(3)
    on = fleet()
    on.active.add(1)
    await on.supervise(cast("ChaosWorker", ended))
    assert (on.findings, ended.starts) == ([], 1)


async def test_a_worker_that_another_fault_takes_in_hand_meanwhile_is_started_again_after_it() -> None:
    ended = Ended(1, REFUSED)
    on = fleet(ended)
    on.rights_since = math.inf
    supervised = asyncio.create_task(on.supervise(cast("ChaosWorker", ended)))
    await asyncio.sleep(0)
    async with on.claimed(0):
        await asyncio.sleep(AGAIN_S + 2 * LOOK_S)
        assert ended.starts == 1
    await supervised
    assert (on.findings, ended.starts) == ([], 2)


@pytest.mark.parametrize("code", [0, -15, -9])
def test_a_worker_that_ends_in_order_when_it_is_asked_to_is_no_finding(code: int) -> None:
    on = fleet()
    on.ended_asked(cast("ChaosWorker", Ended(code)), code)
    assert on.findings == []


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, "w1 did not end within 40 s of SIGTERM (after the run)"),
        (1, "w1 ended by itself with exit code 1"),
        (4, "w1 ended by itself with exit code 4"),
        (-11, "w1 ended by itself with exit code -11"),
    ],
)
def test_a_worker_that_ends_otherwise_or_not_at_all_when_it_is_asked_to_is_a_finding(
    code: int | None, says: str
) -> None:
    on = fleet()
    on.ended_asked(cast("ChaosWorker", Ended(0)), code, "after the run")
    [finding] = on.findings
    assert finding.startswith(says)
