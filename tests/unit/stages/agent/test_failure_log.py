"""What the log says of events that fail, and which of them are tried again."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import Dedup, Output, Pipeline, Reject, Retry, Topic
from semel.errors import OutsideEvent
from semel.stages.agent.failure_log import alike_of
from semel.testing.clock import VirtualClock
from tests.unit.harness import APP, ATTEMPTS, Payment, Settlement, World, given_up, payments_pipeline

SLOW = Retry(attempts=3, first_delay=timedelta(seconds=20), max_delay=timedelta(seconds=20))


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name == "semel.agent" and words in r.getMessage()]


def raising(world: World, error: Exception, retry: Retry | None = None) -> Pipeline:
    """Every payment called "bad" fails with this error."""

    async def settle(payments: Any) -> Any:
        async for payment in payments:
            if payment.id.startswith("bad"):
                raise error
            yield Settlement(payment.id, payment.account, 0)

    return Pipeline(
        APP,
        source=Topic("payments", key=str, value=Payment),
        agent=settle,
        sink=Topic("settlements", key=str, value=Settlement),
        retry=retry or Retry(attempts=ATTEMPTS, first_delay=timedelta(milliseconds=20)),
    )


async def test_a_failed_attempt_is_one_line_and_the_traceback_comes_when_the_event_is_given_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.pay("a1", 5, fails=-1)
    world.start()
    await world.drained()

    [attempt] = said(caplog, "again in")
    assert attempt.levelno == logging.WARNING
    assert attempt.exc_info is None
    line = attempt.getMessage()
    assert f"@0 (key b'a1') failed (attempt 1 of {ATTEMPTS}), again in 0.0" in line
    assert line.endswith("s: RuntimeError: attempt 1 at p1")
    [end] = said(caplog, "failed for good")
    assert f"@0 (key b'a1') failed for good (attempt {ATTEMPTS} of {ATTEMPTS}): RuntimeError: attempt 3" in end.message
    assert end.exc_info is not None and end.exc_info[1] is not None
    assert [r for r in caplog.records if r.exc_info] == [end]


async def test_an_event_that_fails_once_shows_no_traceback(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pay("a1", 5, fails=1)
    world.start()
    await world.drained()

    assert len(said(caplog, "again in")) == 1
    assert not [r for r in caplog.records if r.exc_info]
    world.check()


async def test_many_events_that_fail_alike_are_one_line_and_a_number(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.pipeline = payments_pipeline(world.work, style="coroutine")
    for _ in range(200):
        world.pay(fails=1)
    worker = world.start()
    await world.drained()
    assert len(said(caplog, "again in")) == 1

    await world.clock.sleep(30)
    world.pay(fails=1)
    await world.drained()

    [more] = said(caplog, "more like it")
    assert more.message.startswith("199 more like it: tried again, RuntimeError at ")
    assert "payments.py:" in more.message
    assert len(said(caplog, "again in")) == 2
    assert worker.engine.stats["commits"] > 0
    world.check()


async def test_failures_of_different_kinds_are_each_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def also(payment: Payment) -> None:
        if payment.amount == 7 and payment.id not in world.work.handled[:-1]:
            raise OSError("the other one")

    world.work.before = also
    for _ in range(5):
        world.pay("a1", 7)
        world.pay("a1", 5, fails=1)
    world.start()
    await world.drained()

    assert [r.message.rpartition(": ")[0].rpartition(" ")[2] for r in said(caplog, "again in")] == [
        "OSError",
        "RuntimeError",
    ]
    world.check()


async def test_each_attempt_of_an_outage_is_said_when_attempts_are_far_apart(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.pipeline = raising(world, ConnectionError("the database is away"), SLOW)
    world.pay("a1", 5, id="bad")
    world.start()
    await world.drained(within_s=120)

    assert [r.message.partition("(attempt ")[2][0] for r in said(caplog, "again in")] == ["1", "2"]


@pytest.mark.parametrize("then", ["park", "stop"])
async def test_an_attempt_past_the_last_one_says_that_the_event_stays_parked(
    world: World, caplog: pytest.LogCaptureFixture, then: Any
) -> None:
    retry = Retry(attempts=2, first_delay=timedelta(seconds=20), max_delay=timedelta(seconds=20), then=then)
    world.pipeline = raising(world, ConnectionError("the database is away"), retry)
    world.pay("a1", 5, id="bad")
    world.start()
    await world.until(lambda: len(said(caplog, "again in")) >= 3, within_s=120)

    attempts = [r.message.partition("(attempt ")[2].partition(")")[0] for r in said(caplog, "again in")]
    assert attempts[:3] == ["1 of 2", "2 of 2", "3; it stays parked until one succeeds"]


async def test_a_message_of_many_lines_stays_one_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pipeline = raising(world, ValueError("first\nsecond\r\n" + "x" * 5000))
    world.pay("a1", 5, id="bad")
    world.start()
    await world.drained()

    [line] = [r.message for r in said(caplog, "again in")]
    assert "ValueError: first second xxx" in line
    assert "\n" not in line and len(line) < 500


async def test_a_rejected_event_has_no_traceback(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pipeline = raising(world, Reject("not ours"))
    world.pay("a1", 5, id="bad")
    world.start()
    await world.drained()

    assert given_up(world) == [("rejected", "Reject: not ours", 1)]
    assert not [r for r in caplog.records if r.exc_info]


async def test_failed_batches_do_not_flood_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pipeline = payments_pipeline(world.work, style="batches")
    world.start()
    for _ in range(20):
        world.pay("a1", 1, fails=1)
        world.pay("a1", 1)
        await world.drained()

    assert len(said(caplog, "a batch of")) <= 1
    world.check()


# ---------------------------------------------------------------------- what no second attempt can mend


def misusing(world: World, how: str) -> Pipeline:
    def make(tables: Any) -> Any:
        balances, journals = tables

        async def settle(payments: Any) -> Any:
            async for payment in payments:
                await world.work.attempt(payment)
                if how == "another partition":
                    for n in range(8):
                        balances[f"a{n}"] += 1
                elif how == "a key of a wrong type":
                    balances[5] += 1
                elif how == "a value that its type does not hold":
                    journals[payment.account] = [object()]
                yield Settlement(payment.id, payment.account, 0)

        return settle

    return payments_pipeline(world.work, make=make)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("another partition", "WrongPartition: table 'balances': the row "),
        ("a key of a wrong type", "HandlingError: table 'balances': expected str, got int: 5; its keys are str"),
        ("a value that its type does not hold", "HandlingError: table 'journals', row 'a1': "),
    ],
)
async def test_what_depends_on_the_event_and_the_code_alone_is_not_tried_again(
    world: World, how: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.pipeline = misusing(world, how)
    world.pay("a1", 5, id="bad")
    world.start()
    await world.drained()

    [(reason, text, attempts)] = given_up(world)
    assert (reason, attempts) == ("failed", 1)
    assert text.startswith(error)
    assert world.work.handled == ["bad"]
    [end] = said(caplog, "failed for good (attempt 1 of 3)")
    assert end.exc_info is not None
    assert not said(caplog, "again in")


async def test_a_table_used_past_its_event_is_tried_again(world: World) -> None:
    world.pipeline = raising(world, OutsideEvent("a task of an earlier event"))
    world.pay("a1", 5, id="bad")
    world.start()
    await world.drained()

    assert [attempts for *_, attempts in given_up(world)] == [ATTEMPTS]


@pytest.mark.parametrize(
    ("retry", "end"),
    [
        (Retry(transient=(OSError,)), "failed for good (attempt 1 of 5, not among transient=): ValueError: odd"),
        (Retry(fatal=(ValueError,)), "failed for good (attempt 1 of 5, among fatal=): ValueError: odd"),
        (
            Retry(attempts=1, then="hold"),
            "failed for good (attempt 1 of 1): ValueError: odd; its key waits until its letter is replayed or dropped",
        ),
    ],
    ids=["transient", "fatal", "hold"],
)
async def test_the_end_of_an_event_says_what_of_the_declaration_has_it_so(
    world: World, retry: Retry, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def odd(payment: object) -> None:
        raise ValueError("odd")

    world.work.before = odd
    world.pipeline = payments_pipeline(world.work, style="coroutine", retry=retry)
    world.pay("a1", 5, id="bad")
    world.start()
    await world.drained()
    assert len(said(caplog, end)) == 1


# ---------------------------------------------------------------------- a clock that is behind


def behind(world: World, monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    """The next worker's machine has a clock that is behind the brokers'."""
    clock = VirtualClock()
    clock.jump(world.clock.time() - clock.time() - hours * 3600)
    monkeypatch.setattr(world, "clock_of", lambda name: clock)


async def test_a_worker_whose_clock_is_behind_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind(world, monkeypatch, 3)
    for n in range(60):
        world.pay(f"a{n % 8}", 1)
    world.start()
    await world.drained()

    assert len(given_up(world)) == 60
    [warning] = said(caplog, "probably behind")
    assert warning.levelno == logging.WARNING
    own = datetime.fromtimestamp(world.clock.time() - 3 * 3600, UTC)
    assert f"it says {own:%Y-%m-%d %H:%M}" in warning.message
    assert "10 events in a row, of 2 partitions" in warning.message
    assert f"the latest one of {datetime.fromtimestamp(world.clock.time(), UTC):%Y-%m-%d %H:%M}" in warning.message


async def test_a_clock_that_is_behind_by_more_than_the_dedup_window_is_said_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, dedup=Dedup("id", window=timedelta(hours=2)))
    behind(world, monkeypatch, 3)
    for n in range(60):
        world.pay(f"a{n % 8}", 1)
    world.start()
    await world.drained()

    assert [reason for reason, *_ in given_up(world)] == ["clock"] * 60
    assert len(said(caplog, "probably behind")) == 1
    await world.close()


async def test_a_clock_that_is_behind_by_less_than_an_hour_costs_nothing(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind(world, monkeypatch, 0.9)
    world.pay_many(60, trouble=False)
    world.start()
    await world.drained()

    assert given_up(world) == []
    assert not said(caplog, "probably behind")


async def test_a_clock_that_is_ahead_by_hours_costs_nothing(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind(world, monkeypatch, -7)
    for n in range(60):
        world.pay(f"a{n % 8}", 1, fails=-1 if n % 20 == 3 else 0)
    worker = world.start()
    await world.drained()

    assert [reason for reason, *_ in given_up(world)] == ["failed"] * 3
    assert worker.engine.stats["recoveries"] == 0
    now_ms = world.cluster.now_ms()
    written = [f"{APP}.dlq", f"{APP}-positions", f"{APP}-dedup-changelog", f"{APP}-balances-changelog"]
    stamps = {r.timestamp for topic in written for log in world.cluster.committed(topic) for r in log}
    assert stamps and all(now_ms - 3_600_000 < stamp <= now_ms for stamp in stamps), "the time is the broker's"
    world.check()


@pytest.mark.parametrize("old", ["topics of an earlier version", "topics of one's own"])
async def test_state_topics_that_keep_the_writers_time_take_what_a_clock_that_is_ahead_writes(
    world: World, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = world.start()
    world.pay("a1", 1)
    await world.drained()
    await worker.stop()
    names = [f"{APP}.dlq", f"{APP}-positions", f"{APP}-dedup-changelog", f"{APP}-balances-changelog"]
    for name in names if old == "topics of an earlier version" else names[:1]:
        world.cluster.alter_topic(name, {"message.timestamp.type": "CreateTime"})
    behind(world, monkeypatch, -7)
    world.pay("a1", 1, fails=-1)
    world.pay("a1", 1)
    world.start()
    await world.drained()

    assert [reason for reason, *_ in given_up(world)] == ["failed"]
    world.check()


@pytest.mark.parametrize("far", ["on one partition", "between events that are in time"])
async def test_a_producer_whose_clock_is_ahead_does_not_put_ours_in_doubt(
    world: World, far: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.cluster.alter_topic("payments", {"message.timestamp.after.max.ms": str(99 * 3_600_000)})
    later = int(world.clock.time() * 1000) + 10 * 3_600_000
    for n in range(60):
        world.pay("a1" if far == "on one partition" else f"a{n % 8}", 1, at_ms=later)
        if far != "on one partition" and n % 4 == 3:
            for account in range(8):
                world.pay(f"a{account}", 1)
    world.start()
    await world.drained()

    assert len(given_up(world)) == 60
    assert not said(caplog, "probably behind")


@pytest.mark.parametrize("when", ["before it starts", "while it runs"])
async def test_a_dead_letter_topic_that_takes_less_gets_less_of_the_error_and_pauses_nobody(
    world: World, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    configs = {"max.message.bytes": "1200"}
    world.work.error = lambda text: RuntimeError(text + "x" * 3_000)
    if when == "before it starts":
        world.cluster.create_topic(f"{APP}.dlq", world.partitions, configs)
    worker = world.start()
    await world.until_running(worker)
    if when == "while it runs":
        world.cluster.alter_topic(f"{APP}.dlq", configs)
    world.pay("a1", 1, fails=-1)
    world.pay("a1", 2)
    await world.drained(within_s=60)
    assert not worker.engine.paused_by
    [(reason, error, _)] = given_up(world)
    assert reason in ("failed", "refused")
    assert len(error) > 100


async def test_an_output_to_a_topic_of_the_brokers_own_fails_its_event_and_no_other(world: World) -> None:
    async def settle(payments: Any) -> Any:
        async for payment in payments:
            yield Output({"id": payment.id}, topic=Topic("__consumer_offsets") if payment.amount == 13 else None)

    world.pipeline = Pipeline(
        APP, source=Topic("payments", key=str, value=Payment), agent=settle, sink=Topic("settlements", key=str, value=dict),
        retry=Retry(attempts=2, first_delay=timedelta(milliseconds=10)),
    )  # fmt: skip
    world.start()
    for amount in (1, 13, 2):
        world.pay("a1", amount)
    await world.drained(within_s=30)
    [(_, error, _)] = given_up(world)
    assert "the brokers keep their own state there" in error


def test_groups_of_errors_are_alike_where_their_first_errors_are() -> None:
    def error(kind: type[Exception]) -> Exception:
        try:
            raise kind
        except Exception as exc:
            return exc

    groups = [ExceptionGroup("in a TaskGroup", [error(kind)]) for kind in (KeyError, KeyError, ValueError)]
    assert alike_of(groups[0]) == alike_of(groups[1]) == alike_of(error(KeyError)) != alike_of(groups[2])


def test_an_error_that_does_not_say_where_it_is_from_is_like_others_that_do_not() -> None:
    class Odd(Exception):
        @property
        def __traceback__(self) -> Any:
            raise ValueError

    assert alike_of(Odd()) == ("an error", "an unknown place")
