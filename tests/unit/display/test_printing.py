from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import threading
import time

import pytest

from semel.display import printing

FINGERPRINT = "agents.bank.BankDown@agents.charge:charge_the_customer"
ERROR = "the bank does not answer " * 4


def printed_at(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: int = 1) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    printing.rows(("count", "fingerprint", "error"), [("7", FINGERPRINT, ERROR)] * rows)
    return capsys.readouterr().out


def test_at_a_terminal_names_stand_in_one_piece_and_prose_is_folded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = printed_at(100, monkeypatch, capsys)
    heading, first, *folded = printed.splitlines()
    assert all(name in heading for name in ("count", "fingerprint", "error"))
    assert first.startswith(f"7      {FINGERPRINT}  the bank")
    assert folded
    assert "…" not in printed


def test_at_a_terminal_too_narrow_for_its_columns_each_cell_has_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ["count        7", f"fingerprint  {FINGERPRINT}", f"error        {ERROR}"]
    assert printed_at(60, monkeypatch, capsys, rows=2).splitlines() == [*row, "", *row]


def test_reading_that_lasts_is_said_now_and_then_and_what_is_soon_done_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(printing.time, "monotonic", lambda: now)
    with printing.bar() as told:
        for now in range(31):
            told("dead letters", now, 30)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"reading dead letters: {at} of 30 offsets" for at in (2, 12, 22)]
    with printing.bar() as told:
        told("dead letters", 30, 30)
    assert capsys.readouterr().err == ""


READS_AND_ASKS = """
import time
from semel.cli.dlq_asked import confirm
from semel.display import printing
with printing.bar() as told:
    told("dead letters", 1, 2)
    time.sleep(0.3)
    confirm("Go on?", yes=False)
    told("dead letters", 2, 2)
"""


def test_nothing_is_drawn_over_a_question_while_somebody_is_asked() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    run = subprocess.Popen(
        [sys.executable, "-c", READS_AND_ASKS], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    # What never asks is not waited for for ever: its terminal ends, and to read from that is an error.
    end = threading.Timer(20, run.kill)
    end.start()
    shown = b""
    while b"[y/N]: " not in shown:
        shown += os.read(ours, 65_536)
    assert b"dead letters" in shown
    # Ten pictures, if it still drew.
    time.sleep(1)
    os.write(ours, b"y\n")
    after = shown.partition(b"[y/N]: ")[2]
    while not after.endswith(b"\n"):
        after += os.read(ours, 1)
    assert after == b"y\r\n"
    with contextlib.suppress(OSError):
        while os.read(ours, 65_536):
            pass
    assert run.wait(10) == 0
    end.cancel()
    os.close(ours)
