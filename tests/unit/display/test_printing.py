from __future__ import annotations

import sys

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
