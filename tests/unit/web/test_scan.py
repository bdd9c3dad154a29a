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


def test_slices_combine_up_to_where_every_partition_is_known():
    groups, token = combined(
        [Slice(0, rows(0, "a", "c", "e"), True), Slice(1, rows(1, "a", "d"), True), Slice(2, rows(2, "z"), False)]
    )

    assert [[row.key for row in group] for group in groups] == [["a", "a"], ["c"], ["d"]]
    assert token == (-1, b"d")


def test_a_partition_left_out_of_an_answer_ends_the_page_before_it():
    found = in_order({0: Slice(0, rows(0, "a"), False), 2: Slice(2, rows(2, "b"), False)}, [0, 1, 2], 10)

    assert ([row.key for row in found[0]], found[1]) == (["a"], True)


@pytest.mark.parametrize(("limit", "cut"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_page_is_cut_at_its_limit_only_where_more_follows(limit, cut):
    slices = {0: Slice(0, rows(0, "a", "b"), False), 1: Slice(1, rows(1, "c"), False)}

    found = in_order(slices, [0, 1], limit)

    assert ([row.key for row in found[0]], found[1]) == (list("abc")[:limit], cut)
