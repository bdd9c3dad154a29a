"""The comparison must itself be right: each thing that can go wrong in a run turns it red, by its name."""

import pytest

from feeds.truth import Outputs, compare, compare_outputs


def outputs(*values):
    truth = Outputs()
    for key, value in values:
        truth.add(key, value)
    return truth


RIGHT = [("anna", {"id": "1", "n": 1}), ("bert", {"id": "2", "n": 2}), ("anna", {"id": "3", "n": 3})]


def test_equal_outputs_differ_in_nothing_however_partitions_interleave():
    assert compare_outputs("out", outputs(*RIGHT), RIGHT) == []
    assert compare_outputs("out", outputs(*RIGHT), [RIGHT[1], RIGHT[0], RIGHT[2]]) == []


@pytest.mark.parametrize(
    ("found", "fault", "key"),
    [
        ([RIGHT[0], RIGHT[2]], "lost", "2"),
        ([*RIGHT, RIGHT[0]], "doubled", "1"),
        ([RIGHT[0], ("bert", {"id": "2", "n": 5}), RIGHT[2]], "wrong", "2"),
        ([*RIGHT, ("carl", {"id": "4", "n": 4})], "unexpected", "4"),
        ([RIGHT[2], RIGHT[1], RIGHT[0]], "out of order", "3"),
    ],
)
def test_one_fault_in_the_outputs_is_named_once(found, fault, key):
    differences = compare_outputs("out", outputs(*RIGHT), found)
    assert [(difference.fault, difference.key) for difference in differences] == [(fault, key)]


def test_an_output_under_another_key_is_lost_there_and_unexpected_here():
    differences = compare_outputs("out", outputs(*RIGHT), [("carl", RIGHT[0][1]), *RIGHT[1:]])
    assert {(difference.fault, difference.key) for difference in differences} == {("lost", "1"), ("unexpected", "1")}


def test_equal_tables_differ_in_nothing():
    assert compare("t", {"a": 1, "b": {"n": 2}}, {"b": {"n": 2}, "a": 1}) == []


@pytest.mark.parametrize(
    ("found", "fault", "key"),
    [({"a": 1}, "lost", "b"), ({"a": 1, "b": 3}, "wrong", "b"), ({"a": 1, "b": 2, "c": 0}, "unexpected", "c")],
)
def test_one_fault_in_a_table_is_named_once(found, fault, key):
    differences = compare("t", {"a": 1, "b": 2}, found)
    assert [(difference.fault, difference.key) for difference in differences] == [(fault, key)]
    assert str(differences[0]).startswith(f"t[{key}] {fault}")
