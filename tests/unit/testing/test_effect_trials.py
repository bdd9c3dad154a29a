"""EffectTrials: which effects of an agent may happen twice or be missing, with a witness for each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Pipeline, Retry, Topic
from semel.testing import EffectReport, EffectTrials, PipelineTester, PipelineTesterError


@dataclass(frozen=True)
class Payment:
    id: str
    account: str = "anna"


@dataclass
class FarEnd:
    """A service that does what it is told."""

    calls: list[str] = field(default_factory=list)

    def charge(self, id: str) -> str:
        self.calls.append(id)
        return f"receipt of {id}"

    async def charge_soon(self, id: str) -> str:
        await asyncio.sleep(0.01)
        return self.charge(id)


@pytest.fixture
def bank() -> FarEnd:
    return FarEnd()


AT_A_COMMIT = {
    f"the process dies at {point}"
    for point in (
        "barrier.before_seal", "barrier.after_seal", "commit.before_partitions", "commit.after_partitions",
        "commit.after_offsets_added", "commit.after_produce", "commit.after_offsets",
    )
}  # fmt: skip


def pipeline(agent: Callable[..., Any], **declared: Any) -> Pipeline:
    declared.setdefault("dedup", Dedup("id", window=timedelta(days=7)))
    return Pipeline("trials", source=Topic("payments", key=str, value=Payment), agent=agent, **declared)


def nothing(payment: Payment) -> None: ...


def one(tester: PipelineTester) -> None:
    tester.send(Payment("p1"), key="anna")


def tried(agent: Callable[..., Any], bank: FarEnd, name: str = "charge", **effect: Any) -> EffectReport:
    trials = EffectTrials(pipeline(agent), one)
    trials.effect(bank, name, **effect)
    return trials.run()


def kinds(bank: FarEnd) -> dict[str, tuple[Callable[..., Any], str, dict[str, Any]]]:
    async def soon(payment: Payment) -> None:
        await bank.charge_soon(payment.id)

    def plain(payment: Payment) -> None:
        bank.charge(payment.id)

    async def stream(payments: Any) -> AsyncIterator[None]:
        async for payment in payments:
            bank.charge(payment.id)
            yield None

    return {
        "awaited": (soon, "charge_soon", {}),
        "plain": (plain, "charge", {}),
        "a thread": (plain, "charge", {"threads": 1}),
        "a stream": (stream, "charge", {}),
    }


@pytest.mark.parametrize("kind", ["awaited", "plain", "a thread", "a stream"])
def test_an_effect_without_a_key_is_there_twice_after_deaths_before_the_commit_and_lost_answers(
    bank: FarEnd, kind: str
) -> None:
    agent, name, declared = kinds(bank)[kind]
    trials = EffectTrials(pipeline(agent, retry=Retry(transient=(ConnectionError, TimeoutError)), **declared), one)
    trials.effect(bank, name)
    report = trials.run()
    twice = {f"{name}: the process dies after it", f"{name}: it happens, and times out", *AT_A_COMMIT}
    assert {(w.trouble, w.happened, w.expected) for w in report.witnesses(name)} == {(t, 2, 1) for t in twice}
    assert (report.once, report.maybe_twice, report.may_be_missing) == (set(), {name}, set())


@pytest.mark.parametrize("kind", ["awaited", "a thread"])
def test_an_effect_whose_far_end_knows_its_key_is_there_once(bank: FarEnd, kind: str) -> None:
    agent, name, declared = kinds(bank)[kind]
    trials = EffectTrials(pipeline(agent, retry=Retry(transient=(ConnectionError, TimeoutError)), **declared), one)
    trials.effect(bank, name, same=lambda id: id)
    report = trials.run()
    assert report.once == {name}, report
    assert len(report.trials) > 10


def test_a_key_that_changes_with_the_attempt_is_found_out(bank: FarEnd) -> None:
    def agent(payment: Payment) -> None:
        bank.charge(f"{payment.id} at {time.monotonic_ns()}")

    assert tried(agent, bank, same=lambda id: id).maybe_twice == {"charge"}


def test_an_effect_is_missing_where_its_failure_is_not_tried_again_and_the_dead_letter_is_named(bank: FarEnd) -> None:
    def agent(payment: Payment) -> None:
        bank.charge(payment.id)

    trials = EffectTrials(pipeline(agent, retry=Retry(fatal=(LookupError,))), one)
    trials.effect(bank, "charge", same=lambda id: id, fails=LookupError("no such account"))
    report = trials.run()
    assert (report.maybe_twice, report.may_be_missing) == (set(), {"charge"})
    [witness] = report.witnesses("charge")
    assert str(witness) == (
        "charge: it fails, and has not happened: 0 instead of 1; dead letter: failed: LookupError: no such account"
    )
    assert str(witness) in str(report)


def test_what_code_catches_and_goes_on_from_is_missing(bank: FarEnd) -> None:
    def agent(payment: Payment) -> None:
        with contextlib.suppress(ConnectionError):
            bank.charge(payment.id)

    assert tried(agent, bank, same=lambda id: id).may_be_missing == {"charge"}


def test_code_of_a_process_that_died_does_nothing_more(bank: FarEnd) -> None:
    """A `finally`, or an `except BaseException`, that would run in no process that was killed."""
    mail = FarEnd()

    def agent(payment: Payment) -> None:
        try:
            bank.charge(payment.id)
        finally:
            mail.charge(payment.id)

    trials = EffectTrials(pipeline(agent), one)
    trials.effect(bank, "charge")
    trials.effect(mail, "charge", named="mail")
    report = trials.run()
    before = next(trial for trial in report.trials if trial.trouble == "charge: the process dies before it")
    assert before.counts == {"charge": 1, "mail": 1}


def test_each_of_several_calls_is_tried_and_what_was_sent_twice_too(bank: FarEnd) -> None:
    def agent(payment: Payment) -> None:
        bank.charge(payment.id)

    trials = EffectTrials(
        pipeline(agent, dedup=None),
        lambda tester: tester.send_all([Payment("p1"), Payment("p2")], key="account"),
    )
    trials.effect(bank, "charge")
    report = trials.run()
    assert report.expected == {"charge": 2}
    assert {"charge: the process dies after it", "charge (call 2): the process dies after it"} <= {
        w.trouble for w in report.witnesses("charge")
    }
    assert next(w for w in report.witnesses("charge") if w.trouble == "the events are sent twice").happened == 4


def test_the_far_end_itself_can_be_asked_how_many_there_are(bank: FarEnd) -> None:
    def agent(payment: Payment) -> None:
        if payment.id not in bank.calls:
            bank.charge(payment.id)

    trials = EffectTrials(pipeline(agent), one, before_each=bank.calls.clear)
    trials.effect(bank, "charge", count=lambda: len(bank.calls))
    assert trials.run().maybe_twice == set()


def test_the_report_is_a_table_with_a_witness_in_each_cell(bank: FarEnd) -> None:
    def agent(payment: Payment) -> None:
        bank.charge(payment.id)

    report = tried(agent, bank)
    title, _, heads, row, *rest = str(report).splitlines()
    assert title == f"trials: {len(report.trials)} runs in which one thing goes wrong"
    assert heads.split("  ")[0] == "effect" and heads.endswith("may be missing")
    assert row.startswith(f"charge  in {len(report.trials) - len(report.witnesses('charge'))} of {len(report.trials)}")
    assert "charge: the process dies after it (and " in row
    assert len(rest) == 2 + len(report.witnesses("charge"))


def test_methods_of_every_kind_are_tried_and_are_afterwards_as_they_were() -> None:
    class Bank:
        @staticmethod
        def charge(id: str) -> None: ...

        @classmethod
        def refund(cls, id: str) -> None:
            assert cls is Bank

        def note(self, id: str) -> None:
            assert type(self) is Bank

    before = dict(vars(Bank))

    def agent(payment: Payment) -> None:
        Bank.charge(payment.id)
        Bank().refund(payment.id)
        Bank().note(payment.id)

    trials = EffectTrials(pipeline(agent), one)
    trials.effect(Bank, "charge", same=lambda id: id)
    trials.effect(Bank, "refund", same=lambda id: id)
    trials.effect(Bank, "note", same=lambda self, id: id)
    report = trials.run()
    assert report.expected == {"charge": 1, "refund": 1, "note": 1}
    assert report.once == {"charge", "refund", "note"}
    assert dict(vars(Bank)) == before


class TestMistakesOfATest:
    def test_an_effect_that_never_happens_is_told(self, bank: FarEnd) -> None:
        def agent(payment: Payment) -> None: ...

        with pytest.raises(
            PipelineTesterError, match="'charge' does not happen where nothing goes wrong: name it where"
        ):
            tried(agent, bank)

    def test_what_is_not_there_cannot_be_named(self, bank: FarEnd) -> None:
        trials = EffectTrials(pipeline(nothing), one)
        with pytest.raises(PipelineTesterError, match="has no 'chrage' to call"):
            trials.effect(bank, "chrage")

    def test_two_of_one_name_need_names(self, bank: FarEnd) -> None:
        trials = EffectTrials(pipeline(nothing), one)
        trials.effect(bank, "charge")
        with pytest.raises(PipelineTesterError, match="named='refund'"):
            trials.effect(FarEnd(), "charge")

    def test_without_an_effect_there_is_nothing_to_try(self, bank: FarEnd) -> None:
        with pytest.raises(PipelineTesterError, match="no effect is named"):
            EffectTrials(pipeline(nothing), one).run()

    def test_what_same_raises_is_no_failure_of_the_effect(self, bank: FarEnd) -> None:
        def agent(payment: Payment) -> None:
            bank.charge(payment.id)

        with pytest.raises(KeyError, match="no such key"):
            tried(agent, bank, same=lambda id: {}["no such key"])

    def test_die_is_for_what_an_agent_calls(self, bank: FarEnd) -> None:
        with PipelineTester(pipeline(nothing)) as tester, pytest.raises(PipelineTesterError, match="crash"):
            tester.die()
