"""The tables of an inbox: which statements lead from what is there to what this version needs. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from semel.errors import ConfigError, InboxSchemaError

VERSION = 1

# What leads from the version before to each one. `done`: the effect has happened. `scope`, `step`, `id`, `edition` are the key
# for a reader, `key` is it for the index. Of an event: where it lies, and its time.
STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "CREATE SCHEMA IF NOT EXISTS {schema}",
        """CREATE TABLE {schema}.effects (
    key bytea PRIMARY KEY,
    scope text NOT NULL,
    step text NOT NULL,
    id bytea NOT NULL,
    edition bytea NOT NULL,
    payload bytea NOT NULL,
    owner uuid NOT NULL,
    done boolean NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    outcome bytea,
    topic text,
    topic_id text,
    partition integer,
    "offset" bigint,
    at_ms bigint,
    window_ms bigint,
    claimed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at timestamptz
)""",
        # Purging goes by age, and looks for what is not done.
        "CREATE INDEX effects_claimed_at ON {schema}.effects USING brin (claimed_at)",
        "CREATE INDEX effects_not_done ON {schema}.effects (claimed_at) WHERE NOT done",
        "CREATE TABLE {schema}.inbox_version (version integer NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())",
    ),
}

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def checked_name(schema: str) -> str:
    """The name of a schema, which needs no quotes anywhere. ConfigError."""
    if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigError(
            f"schema={schema!r:.80} is no name for the tables of an inbox; use up to 63 of a-z, 0-9 and _, not beginning with pg_"
        )
    return schema


class Plan(NamedTuple):
    """`version`: that of the tables there are, 0 where there is none. `statements`: what is to be run, empty where nothing is."""

    version: int
    statements: tuple[str, ...]


def plan(version: int, schema: str) -> Plan:
    """InboxSchemaError where the tables are of a newer version."""
    check_not_newer(version, schema)
    statements = [
        statement.format(schema=schema)
        for step in range(version + 1, VERSION + 1)
        for statement in (*STEPS[step], f"INSERT INTO {{schema}}.inbox_version (version) VALUES ({step})")
    ]
    return Plan(version, tuple(statements))


def check(version: int, schema: str) -> None:
    """InboxSchemaError where this version cannot work with what is there."""
    if version == 0:
        raise InboxSchemaError(
            f"schema {schema} has no tables of an inbox; see what would be made with semel inbox plan, make it with semel "
            "inbox apply"
        )
    check_not_newer(version, schema)
    if version < VERSION:
        raise InboxSchemaError(
            f"the tables of the inbox in schema {schema} are of version {version}, and this semel needs {VERSION}; see what "
            "would change with semel inbox plan, change it with semel inbox apply"
        )


def check_not_newer(version: int, schema: str) -> None:
    if version > VERSION:
        raise InboxSchemaError(
            f"the tables of the inbox in schema {schema} are of version {version}, and this semel knows up to {VERSION}; install "
            "a newer semel"
        )
