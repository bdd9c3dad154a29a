"""`semel inbox` on a real database."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from semel import Inbox
from semel.cli import app
from semel.cli.exits import UNREACHABLE, code_of
from semel.errors import EffectUnsure, InboxUnreachable
from tests.postgres import Postgres


def asked(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["inbox", *arguments, "--json"])
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def test_a_plan_is_shown_and_what_is_shown_is_done(postgres: Postgres, key: str) -> None:
    where = ("--url", postgres.url(), "--schema", f"c{key}")
    planned = asked("plan", *where)
    assert planned["version"] == 0
    assert asked("apply", *where)["statements"] == planned["statements"]
    assert asked("plan", *where) == {"schema": f"c{key}", "version": 1, "statements": []}
    shown = CliRunner().invoke(app, ["inbox", "apply", *where])
    assert "nothing was to be done" in shown.stderr
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA c{key} CASCADE".encode())


def test_what_is_unsure_is_listed_and_settled(
    postgres: Postgres, inbox: Inbox, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMEL_INBOX_URL", postgres.url())
    with pytest.raises(KeyError):
        inbox.once(key, 1, scope="charges").run(lambda: {}[1])
    with pytest.raises(EffectUnsure):
        inbox.once(key, 1, scope="charges").run(lambda: 2)
    [mine] = [line for line in asked("ls") if key in line["effect"]]
    assert (mine["effect"], mine["attempts"], mine["event"]) == (f"charges {key!r}", 1, None)
    assert CliRunner().invoke(app, ["inbox", "settle", mine["key"], "--happened", '{"id": 7}']).exception is None
    assert inbox.once(key, 1, scope="charges").run(lambda: 2) == {"id": 7}
    assert asked("purge", "--older-than", "1")["purged"] >= 0


def test_a_database_that_is_away_has_its_exit_code() -> None:
    inbox = Inbox("host=/tmp/semel-nobody-here", timeout=timedelta(milliseconds=50))
    with pytest.raises(InboxUnreachable, match="no connection to the inbox") as told:
        inbox.plan()
    assert code_of(told.value) == UNREACHABLE
