"""`semel inbox`: what it refuses before it asks a database. What it does with one: tests/effects/test_commands.py."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from semel.cli import app
from semel.cli.exits import USAGE, code_of


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "which database?"),
        (["plan", "--url", "mysql://a"], "none that PostgreSQL's clients know"),
        (["plan", "--url", "postgresql://a", "--schema", "A B"], "no name for the tables"),
        (["settle", "00"], "say one of --happened JSON and --not-done"),
        (["settle", "00", "--happened", "1", "--not-done"], "say one of"),
        (["settle", "00", "--happened", "yes"], "is no JSON"),
        (["settle", "00", "--not-done", "--url", "postgresql://a"], "64 hexadecimal digits"),
    ],
)
def test_what_cannot_be_is_a_usage_error(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMEL_INBOX_URL", raising=False)
    result = CliRunner().invoke(app, ["inbox", *arguments])
    assert result.exception is not None
    assert code_of(result.exception) == USAGE
    assert said in str(result.exception)
