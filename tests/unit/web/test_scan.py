import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.web.scan import PageToken, Slice, combined, in_order
from semel.web.view import TableRow


@given(st.integers(-1, 2**31 - 1), st.binary(max_size=50))
def test_a_page_token_reads_back_and_is_safe_in_a_url(partition, raw):
    text = PageToken(partition, raw).encode()

    assert PageToken.decode(text) == (partition, raw)
    assert text.replace("-", "").replace("_", "").isalnum()


@given(st.text(max_size=30))
def test_any_other_text_is_a_token_or_a_value_error(text):
    try:
        token = PageToken.decode(text)
    except ValueError:
        return
    assert token.partition >= -1


def rows(partition, *keys):
    return [TableRow(key, 1, partition, key.encode()) for key in keys]


def slice_of(partition, *keys, more=False, last=None):
    held = rows(partition, *keys)
    return Slice(partition, held, more, last.encode() if last else held[-1].raw if held else b"")


def test_slices_combine_up_to_where_every_partition_is_known():
    groups, token = combined(
        [slice_of(0, "a", "c", "e", more=True), slice_of(1, "a", "d", more=True), slice_of(2, "z")]
    )

    assert [[row.key for row in group] for group in groups] == [["a", "a"], ["c"], ["d"]]
    assert token == (-1, b"d")


def test_slices_that_looked_further_than_their_last_row_combine_up_to_where_they_looked():
    groups, token = combined([slice_of(0, "a", more=True, last="m"), slice_of(1, "b", "n", "z", more=True)])

    assert [[row.key for row in group] for group in groups] == [["a"], ["b"]]
    assert token == (-1, b"m")


def test_a_partition_left_out_of_an_answer_ends_the_page_before_it():
    found = in_order({0: slice_of(0, "a"), 2: slice_of(2, "b")}, [0, 1, 2], 10)

    assert ([row.key for row in found.rows], found.next) == (["a"], (0, b"a"))


def test_where_the_first_partition_is_left_out_there_is_nothing_to_go_on_from():
    assert in_order({2: slice_of(2, "b")}, [1, 2], 10) == ([], None, False)


def test_a_slice_that_looked_and_found_nothing_is_gone_on_from():
    found = in_order({0: slice_of(0, more=True, last="m"), 1: slice_of(1, "b")}, [0, 1], 10)

    assert found == ([], (0, b"m"), True)


@pytest.mark.parametrize(("limit", "ends_at"), [(1, (0, b"a")), (2, (0, b"b")), (3, None), (4, None)])
def test_a_page_is_cut_at_its_limit_only_where_more_follows(limit, ends_at):
    found = in_order({0: slice_of(0, "a", "b"), 1: slice_of(1, "c")}, [0, 1], limit)

    assert ([row.key for row in found.rows], found.next) == (list("abc")[:limit], ends_at)
