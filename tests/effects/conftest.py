"""A real PostgreSQL for the session, with the tables of an inbox and a table of effects."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel import Inbox
from tests.effects.stores import KINDS
from tests.postgres import Postgres, running


@pytest.fixture(scope="session")
def _server() -> Iterator[Postgres]:
    with running("rows (key text NOT NULL)", "counters (name text PRIMARY KEY, n integer NOT NULL)") as server:
        yield server


@pytest.fixture
def postgres(_server: Postgres) -> Postgres:
    """A test that stops it leaves it running."""
    return _server


@pytest.fixture
def inbox(postgres: Postgres) -> Iterator[Inbox]:
    inbox = Inbox(postgres.url())
    yield inbox
    inbox.close()


@pytest.fixture
def key() -> str:
    """What no other test has."""
    return secrets.token_hex(8)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The test runs once with each kind of store."""
    if request.param == "folder":
        return f"folder={tmp_path}"
    server: Postgres = request.getfixturevalue("postgres")
    return f"{request.param}={server.url()}"


@pytest.fixture(params=[kind for kind in KINDS if kind != "postgres-async"])
def store_of_processes(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As `store`, where processes cost more than what another driver of the same statements could show."""
    return (
        f"folder={tmp_path}" if request.param == "folder" else f"postgres={request.getfixturevalue('postgres').url()}"
    )
