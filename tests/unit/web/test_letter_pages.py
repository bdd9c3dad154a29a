from __future__ import annotations

from typing import Any

from semel.web import letter_pages as pages

FRAME = pages.Frame("shop", "f" * 64, "", "root")
CLOSED = pages.Frame("shop", "f" * 64, "nobody may act here", None)
GROUP = {
    "fingerprint": "ValueError@a:b", "count": 3, "keys": 2, "keys_exact": False, "first_seen": 1, "last_seen": -1,
    "version": None, "error": "no", "open": 3, "done": 1, "state": "open",
}  # fmt: skip
RUN = {
    "id": "r1", "action": "replay", "state": "running", "by": "ada", "reason": "why", "letter": None, "group": None, "began": 1,
    "ended": None, "letters": 1_200, "skipped": {"too large": 2}, "known": 900, "came_back": 0, "stopped": None, "error": None,
}  # fmt: skip


def overview(**changed: Any) -> str:
    document = {
        "show": "open", "groups": [GROUP], "other_letters": 0, "complete": True, "read": {"done": 5, "total": 5}, **changed
    }  # fmt: skip
    return pages.groups(FRAME, document)


def test_while_letters_are_read_the_page_says_how_far_that_is_and_loads_itself_again() -> None:
    page = overview(complete=False, read={"done": 250_000, "total": 1_000_000})
    assert "250,000 of 1,000,000 records are read" in page and 'http-equiv="refresh"' in page
    assert 'http-equiv="refresh"' not in overview(), "nothing that a person types is lost"


def test_a_count_of_keys_that_is_not_exact_is_marked_as_such() -> None:
    assert "~2" in overview()


def test_letters_beyond_what_is_kept_are_counted() -> None:
    assert "7 more letters are beyond" in overview(other_letters=7)


def test_an_action_shows_how_far_it_is_and_can_be_stopped_while_it_runs() -> None:
    page = pages.action(FRAME, RUN)
    assert (
        "1,200" in page
        and "Stop it" in page
        and 'http-equiv="refresh"' in page
        and "2 were left out: too large" in page
    )
    ended = pages.action(FRAME, {**RUN, "state": "stopped", "ended": 5, "came_back": 40, "stopped": "most come back"})
    assert "Stop it" not in ended and 'http-equiv="refresh"' not in ended
    assert "<b class=bad>40 came back" in ended and "most come back" in ended
    assert "Stop it" not in pages.action(CLOSED, RUN)


def test_an_archived_group_is_not_archived_again() -> None:
    group = {**GROUP, "show": "open", "letters": [], "next": None}
    assert "Archive" in pages.group(FRAME, group)
    assert "Archive" not in pages.group(FRAME, {**group, "state": "archived"})


def test_a_group_says_of_which_version_it_is_only_where_that_is_known() -> None:
    group = {**GROUP, "show": "open", "letters": [], "next": None}
    assert "version" not in pages.group(FRAME, group) and "version" not in overview()
    known = {**group, "version": "v7"}
    assert "in version" in pages.group(FRAME, known) and "first in version" in overview(groups=[known])


def test_who_a_token_names_is_not_asked_for_a_name() -> None:
    group = {**GROUP, "show": "open", "letters": [], "next": None}
    assert 'name="as"' in pages.group(FRAME, group)
    assert 'name="as"' not in pages.group(FRAME._replace(name=None), group)
    closed = pages.group(CLOSED, group)
    assert "<button>" not in closed and closed.count("nobody may act here") == 1


def test_a_diff_without_changes_has_nothing_to_confirm() -> None:
    page = pages.diff(FRAME, {"position": "0@1", "changes": [], "other_id": None, "text": "x"})
    assert "Nothing changes" in page and "<button>" not in page
