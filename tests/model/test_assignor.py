"""Who runs which task: each exactly once, evenly, with as few moves as that allows.

A failure prints a minimal example and a seed (`--hypothesis-seed`) that repeats the run.
"""

from __future__ import annotations

from itertools import combinations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel.group.assignor import (
    Assignment,
    Malformed,
    MemberInfo,
    assign,
    decode_assignment,
    decode_member,
    encode_assignment,
    encode_member,
    mixed,
)

TOPICS = ("in",)


def members_running(held: list[list[int]]) -> list[MemberInfo]:
    return [MemberInfo(f"id-{n}", TOPICS, f"w{n}", "", tuple(tasks)) for n, tasks in enumerate(held)]


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[MemberInfo], int]:
    """Members that may say anything: tasks twice, tasks of others, tasks that are no more."""
    tasks = draw(st.integers(0, 40))
    count = draw(st.integers(1, 9))
    said = draw(st.lists(st.lists(st.integers(-1, 45), max_size=45), min_size=count, max_size=count))
    return members_running(said), tasks


@st.composite
def divided(draw: st.DrawFn) -> tuple[list[MemberInfo], int]:
    """Members that each ran other tasks, as after an assignment; some tasks nobody ran."""
    tasks = draw(st.integers(0, 24))
    count = draw(st.integers(1, 6))
    owners = draw(st.lists(st.integers(-1, count - 1), min_size=tasks, max_size=tasks))
    return members_running([[t for t, o in enumerate(owners) if o == n] for n in range(count)]), tasks


@settings(print_blob=True)
@given(groups(), st.randoms())
def test_each_task_is_run_once_and_loads_differ_by_at_most_one(group: tuple[list[MemberInfo], int], shuffle) -> None:
    members, tasks = group
    assigned = assign(members, tasks)
    assert sorted(t for held in assigned.values() for t in held) == list(range(tasks))
    assert set(assigned) == {m.member_id for m in members}
    loads = [len(held) for held in assigned.values()]
    assert max(loads) - min(loads) <= 1
    assert all(list(held) == sorted(held) for held in assigned.values())
    # The answer is a matter of who is there, not of the order in which they came.
    again = list(members)
    shuffle.shuffle(again)
    assert assign(again, tasks) == assigned


@settings(print_blob=True, max_examples=200)
@given(divided())
def test_as_many_tasks_stay_as_even_loads_allow(group: tuple[list[MemberInfo], int]) -> None:
    members, tasks = group
    assigned = assign(members, tasks)
    stayed = sum(len(set(m.tasks) & set(assigned[m.member_id])) for m in members)
    low, extra = divmod(tasks, len(members))
    # By hand: whoever may have one more is chosen in every possible way.
    best = max(
        sum(min(len(m.tasks), low + (n in fuller)) for n, m in enumerate(members))
        for fuller in combinations(range(len(members)), extra)
    )
    assert stayed == best


@settings(print_blob=True)
@given(st.integers(0, 60), st.integers(1, 8))
def test_nobody_moves_when_nothing_changed(tasks: int, count: int) -> None:
    first = assign(members_running([[] for _ in range(count)]), tasks)
    again = assign(members_running([list(first[f"id-{n}"]) for n in range(count)]), tasks)
    assert again == first


@settings(print_blob=True)
@given(st.integers(0, 60), st.integers(2, 8), st.integers(0, 7))
def test_a_member_that_leaves_moves_its_own_tasks_only(tasks: int, count: int, leaver: int) -> None:
    first = assign(members_running([[] for _ in range(count)]), tasks)
    held = [list(first[f"id-{n}"]) for n in range(count)]
    staying = [m for n, m in enumerate(members_running(held)) if n != leaver % count]
    after = assign(staying, tasks)
    assert all(set(m.tasks) <= set(after[m.member_id]) for m in staying)


def test_no_members_no_assignment() -> None:
    assert assign([], 5) == {}


def test_where_two_say_they_ran_a_task_the_first_by_instance_keeps_it() -> None:
    members = [MemberInfo("z", TOPICS, "w2", "", (0, 1)), MemberInfo("a", TOPICS, "w1", "", (0, 1))]
    # The one keeps the first of its tasks, the other what is left of its own.
    assert assign(members, 2) == {"a": (0,), "z": (1,)}


texts = st.text(max_size=20)
names = texts.map(lambda text: "".join(filter(str.isprintable, text)))
urls = st.sampled_from(["", "http://w1:6066", "https://[::1]:7/behind/a/proxy"])


@settings(print_blob=True)
@given(
    st.builds(
        MemberInfo,
        texts,
        st.lists(texts, max_size=3).map(tuple),
        names,
        urls,
        st.lists(st.integers(0, 1000), max_size=5).map(tuple),
        st.integers(0, 1000),
        texts,
    )
)
def test_a_member_is_read_as_it_was_written(info: MemberInfo) -> None:
    assert decode_member(info.member_id, encode_member(info)) == info
    assert decode_member("m", b"") == MemberInfo("m", ())


def test_members_of_versions_that_say_less_or_more_are_read() -> None:
    before = b'{"topics":["in"],"instance":"w1","url":"","tasks":[0],"anew":2}'
    assert decode_member("m", before) == MemberInfo("m", ("in",), "w1", "", (0,), 2, "")
    assert decode_member("m", before[:-1] + b',"program":"settle","later":{}}').program == "settle"


def test_programs_are_mixed_where_members_that_read_the_same_topics_run_several() -> None:
    def member(instance: str, program: str, *topics: str) -> MemberInfo:
        return MemberInfo(instance, topics or TOPICS, instance, program=program)

    assert mixed([]) == mixed([member("a", "x"), member("b", "x"), member("c", "y", "other"), member("d", "")]) == []
    members = [
        member("c", "x"),
        member("b", "y"),
        member("a", "x"),
        member("d", ""),
        member("e", "x", *reversed(TOPICS)),
    ]
    assert mixed(members) == [{"x": ["a", "c", "e"], "y": ["b"]}]


@settings(print_blob=True)
@given(
    st.builds(
        Assignment,
        st.lists(st.integers(0, 1000), max_size=5).map(tuple),
        st.dictionaries(texts, st.integers(1, 1000), max_size=3).map(lambda counts: counts | {"in": 1001}),
        st.dictionaries(st.integers(0, 1000), st.tuples(names, urls), max_size=3),
    )
)
def test_an_assignment_is_read_as_it_was_written(assignment: Assignment) -> None:
    assert decode_assignment(encode_assignment(assignment)) == assignment
    assert decode_assignment(b"") == Assignment(())


FOREIGN = [
    b"{not json", b"[1]", b"null", b"7", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"tasks":[0', b" " * (1 << 20) + b"{}",
    b'{"topics":null,"instance":null,"url":null,"tasks":null}', b'{"tasks":["x"]}', b'{"tasks":[1.5]}', b'{"tasks":5}',
    b'{"tasks":[true]}', b'{"instance":7}', b'{"url":5}', b'{"topics":"in"}', b'{"anew":"x"}', b'{"instance":"a\\nERROR b"}',
    b'{"instance":"' + b"x" * 300 + b'"}',
]  # fmt: skip


@pytest.mark.parametrize("raw", FOREIGN, ids=lambda raw: repr(raw[:24]))
def test_what_no_worker_would_say_of_itself_is_malformed_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(Malformed):
        decode_member("m", raw)


@pytest.mark.parametrize("said", [
    {"tasks": [5], "partitions": {"in": 5}}, {"tasks": [-1], "partitions": {"in": 5}}, {"tasks": [0]},
    {"partitions": {"in": 0}}, {"partitions": {"in": "4"}}, {"partitions": 4}, {"owners": {"x": ["a", ""]}},
    {"owners": {"0": ["a"]}}, {"owners": {"0": "ab"}}, {"owners": {"0": ["a\nb", ""]}}, {"tasks": None}, [], 0,
], ids=repr)  # fmt: skip
def test_what_no_leader_would_assign_is_malformed_and_nothing_else(said: object) -> None:
    with pytest.raises(Malformed):
        decode_assignment(orjson.dumps(said))


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "javascript:alert(1)", "http://", "http://x\r\nSet-Cookie: evil=1", "http://u:p@h", "//h:1",
    "http://h/latest/meta-data?x=", "http://h/#", "http://h:port", "http://h\\@other", 'http://h"onload="x', "http://ä",
    "http://h/" + "x" * 1000,
])  # fmt: skip
def test_a_url_that_is_none_of_a_worker_is_no_address(url: str) -> None:
    assert decode_member("m", encode_member(MemberInfo("m", (), "w1", url))).url == ""
    owned = decode_assignment(encode_assignment(Assignment((0,), {"in": 1}, {0: ("w1", url)})))
    assert owned.owners == {0: ("w1", "")}
