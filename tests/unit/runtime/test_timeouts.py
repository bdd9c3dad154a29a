import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.errors import ConfigError
from semel.runtime.timeouts import TIMEOUTS, derive_timeouts


def held(values):
    return (
        values["rpc_timeout_ms"]
        < values["commit_timeout_ms"]
        < values["revoke_timeout_ms"]
        < values["rebalance_timeout_ms"]
        and values["commit_timeout_ms"] < values["transaction_timeout_ms"] <= values["session_timeout_ms"]
    )


def ladder(values):
    return tuple(
        values[f"{name}_timeout_ms"] for name in ("rpc", "commit", "revoke", "rebalance", "transaction", "session")
    )


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, (2000, 5000, 7000, 60000, 10000, 10000)),
        ({"session_timeout_ms": 6000}, (2000, 5000, 7000, 60000, 6000, 6000)),
        ({"session_timeout_ms": 3000}, (600, 1500, 2100, 60000, 3000, 3000)),
        ({"session_timeout_ms": 45000}, (2000, 5000, 7000, 60000, 10000, 45000)),
        ({"transaction_timeout_ms": 20000}, (2000, 5000, 7000, 60000, 20000, 20000)),
        ({"commit_timeout_ms": 12000}, (2000, 12000, 17143, 60000, 24000, 24000)),
        ({"rebalance_timeout_ms": 5000}, (980, 2450, 3430, 5000, 10000, 10000)),
        ({"rpc_timeout_ms": 1499, "session_timeout_ms": 1501}, (1499, 1500, 2100, 60000, 1501, 1501)),
    ],
)
def test_the_defaults_follow_the_timeouts_that_are_set(given_, expected):
    assert ladder(derive_timeouts(given_)) == expected


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        (
            {"rpc_timeout_ms": 6000, "commit_timeout_ms": 5000},
            "rpc_timeout_ms = 6000 must be below commit_timeout_ms = 5000: lower rpc_timeout_ms or raise commit_",
        ),
        (
            {"commit_timeout_ms": 5000, "session_timeout_ms": 5000},
            "commit_timeout_ms = 5000 must be below session_timeout_ms = 5000",
        ),
        (
            {"transaction_timeout_ms": 5001, "session_timeout_ms": 5000},
            "transaction_timeout_ms = 5001 must be at most session_timeout_ms = 5000",
        ),
        ({"rpc_timeout_ms": 9, "rebalance_timeout_ms": 9}, "rpc_timeout_ms = 9 must be below rebalance_timeout_ms = 9"),
        ({"session_timeout_ms": 1}, "session_timeout_ms = 1"),
        (
            {"rpc_timeout_ms": 1, "session_timeout_ms": 2},
            "no room is left for rpc_timeout_ms below commit_timeout_ms",
        ),
    ],
)
def test_timeouts_that_contradict_each_other_are_named_with_their_values(given_, says):
    with pytest.raises(ConfigError, match=says):
        derive_timeouts(given_)


@given(st.dictionaries(st.sampled_from(sorted(TIMEOUTS)), st.integers(1, 200_000)))
def test_whatever_is_set_the_order_holds_or_an_error_names_a_setting_of_it(values):
    try:
        derived = derive_timeouts(values)
    except ConfigError as refused:
        assert any(name in str(refused) for name in values)
    else:
        assert held(derived)
        assert values.items() <= derived.items()


@given(st.sampled_from(sorted(TIMEOUTS)), st.integers(100, 500_000))
def test_one_timeout_alone_is_never_refused(name, value):
    assert held(derive_timeouts({name: value}))


@given(st.lists(st.integers(2, 50_000), min_size=4, max_size=4, unique=True), st.sampled_from(sorted(TIMEOUTS)))
def test_a_full_ladder_with_one_rung_left_out_is_completed(rungs, left_out):
    rpc, commit, revoke, rebalance = sorted(value * 4 for value in rungs)
    full = {
        "rpc_timeout_ms": rpc,
        "commit_timeout_ms": commit,
        "revoke_timeout_ms": revoke,
        "rebalance_timeout_ms": rebalance,
        "transaction_timeout_ms": commit + 2,
        "session_timeout_ms": commit + 3,
    }
    del full[left_out]

    assert held(derive_timeouts(full))
