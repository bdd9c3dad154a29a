from __future__ import annotations

import sys

import pytest

from semel.display import printing


def test_at_a_narrow_terminal_nothing_of_a_cell_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    fingerprint = "agents.bank.BankDown@agents.charge:charge_the_customer"
    printing.rows(("count", "fingerprint", "error"), [("7", fingerprint, "the bank does not answer " * 4)])
    printed = capsys.readouterr().out
    assert "…" not in printed
    # The columns lie side by side: the middle one of each line, put together.
    pieces = [line[len("count  ") :].split("  ")[0].strip() for line in printed.splitlines()[1:]]
    assert "".join(pieces) == fingerprint
