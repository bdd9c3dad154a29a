"""Payments: the generator, and the truth about their balances."""

from itertools import pairwise

import orjson

from feeds import payments
from feeds.truth import PaymentsTruth


def test_payments_have_ids_of_their_own_and_times_in_order():
    made = list(payments.events(20_000, 7))
    assert len({payment["id"] for payment, _ in made}) == 20_000
    assert all(after - before == payments.STEP_MS for (_, before), (_, after) in pairwise(made))


def test_a_seed_means_the_same_payments_and_another_seed_shares_no_id():
    assert list(payments.events(1_000, 7)) == list(payments.events(1_000, 7))
    assert not {p["id"] for p, _ in payments.events(1_000, 7)} & {p["id"] for p, _ in payments.events(1_000, 8)}


def test_a_payment_is_about_190_bytes_and_keyed_by_its_account():
    records = list(payments.records(payments.events(5_000, 7)))
    assert 180 <= sum(len(record.value) for record in records) / 5_000 <= 200
    assert all(record.key.decode() == orjson.loads(record.value)["account"] for record in records)


def test_accounts_and_signs_are_spread():
    made = [payment for payment, _ in payments.events(20_000, 7, accounts=100)]
    assert len({payment["account"] for payment in made}) == 100
    assert 0.03 < sum(payment["amount"] < 0 for payment in made) / 20_000 < 0.07


def test_each_settlement_carries_the_balance_after_its_payment():
    truth = PaymentsTruth(
        [
            {"id": "p1", "account": "anna", "amount": 100},
            {"id": "p2", "account": "bert", "amount": 7},
            {"id": "p3", "account": "anna", "amount": -30},
        ]
    )
    assert truth.tables == {"balances": {"anna": 70, "bert": 7}}
    assert truth.settlements.by_key == {
        "anna": [{"id": "p1", "account": "anna", "balance": 100}, {"id": "p3", "account": "anna", "balance": 70}],
        "bert": [{"id": "p2", "account": "bert", "balance": 7}],
    }
