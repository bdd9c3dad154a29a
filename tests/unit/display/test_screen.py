from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from semel.display.screen import Lines, Picture, WorkerShown, workers_line

ERASE_LINE = "\x1b[2K"
MARK = "\x1e"


def said(moment: str) -> str:
    return f"now {moment}"


def test_a_line_comes_no_more_often_than_it_is_to_and_a_sentence_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(said, every_s=60.0)
    lines.show("one")
    lines.show("two")
    lines.say("kill")

    assert capsys.readouterr() == ("", "now one\nkill\n")


def test_a_line_that_says_nothing_new_does_not_come_again(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(said, every_s=0.0)
    for moment in ("one", "one", "two", "one"):
        lines.show(moment)

    assert capsys.readouterr().err.splitlines() == ["now one", "now two", "now one"]


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Standard error is one; gives what was written to it since the last call."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as written, os.fdopen(master, "rb", buffering=0) as read, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stderr", written)

        def taken() -> str:
            # A terminal hands over in its own time what was written to it: read on until the mark behind it all is there.
            print(end=MARK, file=written, flush=True)
            had = ""
            while not had.endswith(MARK):
                had += read.read(1 << 16).decode()
            return had.removesuffix(MARK)

        yield taken


@pytest.mark.parametrize("stays", [True, False])
def test_a_picture_is_drawn_over_the_one_before_and_stays_or_goes_at_the_end(
    monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    with terminal(monkeypatch) as written:
        picture = Picture(said, stays=stays)
        picture.show("one")
        assert "now one" in written()
        picture.show("two")
        again = written()
        assert again.index(ERASE_LINE) < again.index("now two")

        picture.close()
        assert ("now two" in (again + written()).rpartition(ERASE_LINE)[2]) is stays
        picture.close()
        assert written() == ""


def test_a_sentence_stands_above_the_picture_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as written:
        picture = Picture(said, stays=True)
        picture.show("one")
        written()
        picture.say("w1 [bold]killed[/]")
        picture.close()

        shown = written()
        assert shown.index("w1 [bold]killed[/]") < shown.index("now one")


def test_a_picture_after_the_end_leaves_alone_what_came_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as written:
        picture = Picture(said, stays=True)
        picture.show("one")
        picture.close()
        picture.say("summary")
        written()
        picture.show("two")

        assert ERASE_LINE not in written()
        picture.close()


def test_only_partitions_that_do_not_run_yet_have_their_state_beside_them() -> None:
    workers = [WorkerShown("w1", "running", 11, {2: "restoring", 0: "running"}), WorkerShown("w2", "dead", 12, {})]

    assert workers_line(workers) == "[w1 running 0 2 (restoring), w2 dead]"
