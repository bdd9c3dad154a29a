"""Versions of the tables."""

from __future__ import annotations

import pytest

from semel.effects import schema
from semel.errors import ConfigError, InboxSchemaError


def test_a_plan_leads_to_this_version_from_where_it_is() -> None:
    assert schema.plan(schema.VERSION, "semel") == (schema.VERSION, ())
    found, statements = schema.plan(0, "shop")
    assert found == 0
    assert statements[0] == "CREATE SCHEMA IF NOT EXISTS shop"
    assert statements[-1] == f"INSERT INTO shop.inbox_version (version) VALUES ({schema.VERSION})"
    assert set(schema.STEPS) == set(range(1, schema.VERSION + 1))


def test_what_does_not_fit_is_an_error_that_names_the_next_step() -> None:
    schema.check(schema.VERSION, "semel")
    with pytest.raises(InboxSchemaError, match="semel inbox apply"):
        schema.check(0, "semel")
    with pytest.raises(InboxSchemaError, match="newer semel"):
        schema.check(schema.VERSION + 1, "semel")
    with pytest.raises(InboxSchemaError, match="newer semel"):
        schema.plan(schema.VERSION + 1, "semel")


def test_older_tables_are_refused_by_a_newer_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "VERSION", 2)
    with pytest.raises(InboxSchemaError, match=r"are of version 1, and this semel needs 2; .* semel inbox apply"):
        schema.check(1, "semel")


@pytest.mark.parametrize("name", ["", "Shop", "a b", "a;drop", "1a", "pg_mine", "x" * 64])
def test_a_name_that_needs_quotes_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for the tables"):
        schema.checked_name(name)
