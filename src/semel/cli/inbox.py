"""`semel inbox`: the tables that remember effects, and what they hold."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Generator

    from semel.effects.inbox import Inbox

app = typer.Typer(
    help="The PostgreSQL tables that remember effects outside Kafka.", no_args_is_help=True, rich_markup_mode=None
)

Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="postgresql://…; else inbox_url of the settings.")
]
Schema = Annotated[str, typer.Option("--schema", metavar="NAME", help="Where the tables are.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings in TOML; else config/local.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


@contextmanager
def _inbox(url: str | None, schema: str, config: Path | None) -> Generator[Inbox]:
    from semel.config import Settings
    from semel.effects.inbox import Inbox
    from semel.errors import ConfigError

    if url is None:
        secret = Settings.load(config).inbox_url
        if secret is None:
            raise ConfigError("which database? Give --url, or set SEMEL_INBOX_URL (inbox_url, or inbox_url_file)")
        url = secret.get_secret_value()
    inbox = Inbox(url, schema=schema)
    try:
        yield inbox
    finally:
        inbox.close()


@app.command()
def plan(*, url: Url = None, schema: Schema = "semel", config: Config = None, as_json: Json = False) -> None:
    """Print the statements that `apply` would run; nothing is changed."""
    from semel.display import printing

    with _inbox(url, schema, config) as inbox:
        version, statements = inbox.plan()
    if as_json:
        printing.document({"schema": schema, "version": version, "statements": list(statements)})
    elif statements:
        printing.say("\n".join(f"{statement};" for statement in statements))
    else:
        printing.tell(f"schema {schema} has version {version} of the tables: nothing is to be done")


@app.command()
def apply(*, url: Url = None, schema: Schema = "semel", config: Config = None, as_json: Json = False) -> None:
    """Make the tables, or bring them up to this version, in one transaction. Repeating it is safe."""
    from semel.display import printing
    from semel.effects.schema import VERSION

    with _inbox(url, schema, config) as inbox:
        version, statements = inbox.apply()
    if as_json:
        printing.document({"schema": schema, "before": version, "version": VERSION, "statements": list(statements)})
    elif statements:
        printing.tell(f"schema {schema} has version {VERSION} of the tables now, and had {version or 'none'} before")
    else:
        printing.tell(f"schema {schema} has version {version} of the tables: nothing was to be done")


@app.command()
def ls(*, url: Url = None, schema: Schema = "semel", config: Config = None, as_json: Json = False) -> None:
    """The effects that were begun and are not done: under way, or left by a process that ended. The oldest first, 100 at most."""
    from semel.display import printing

    with _inbox(url, schema, config) as inbox:
        effects = inbox.stranded()
    lines = [
        {
            "key": effect.key.digest.hex(),
            "effect": str(effect.key),
            "event": None if effect.place is None else str(effect.place),
            "attempts": effect.attempts,
            "since": effect.claimed_at.isoformat(timespec="seconds"),
        }
        for effect in effects
    ]
    if as_json:
        printing.document(lines)
    else:
        printing.rows(
            ["KEY", "EFFECT", "EVENT", "ATTEMPTS", "SINCE"],
            [[printing.plain(str(value if value is not None else "-")) for value in line.values()] for line in lines],
        )


@app.command()
def settle(
    key: Annotated[str, typer.Argument(metavar="KEY", help="As semel inbox ls prints it.")],
    *,
    happened: Annotated[
        str | None, typer.Option("--happened", metavar="JSON", help="It happened, with this outcome; null for none.")
    ] = None,
    not_done: Annotated[bool, typer.Option("--not-done", help="It did not: the next call does it.")] = False,
    url: Url = None,
    schema: Schema = "semel",
    config: Config = None,
) -> None:
    """Say what became of an effect that was begun and is not done. Exit code 1: somebody is at it, or there is none."""
    from semel.display import printing
    from semel.effects.decisions import NOT_DONE
    from semel.errors import ConfigError

    if (happened is None) is not not_done:
        raise ConfigError("say one of --happened JSON and --not-done")
    try:
        outcome = NOT_DONE if happened is None else json.loads(happened)
    except ValueError:
        raise ConfigError(
            f"--happened {happened!r:.80} is no JSON; write null, a number, or a text in double quotes"
        ) from None
    with _inbox(url, schema, config) as inbox:
        inbox.settle(key, outcome)
    printing.tell(f"effect {key} " + ("is forgotten: the next call does it" if not_done else "is done"))


@app.command()
def purge(
    *,
    older_than: Annotated[float, typer.Option("--older-than", metavar="DAYS", min=0.001, help="Done so long ago.")],
    url: Url = None,
    schema: Schema = "semel",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Forget effects that were done long ago, by the server's clock. Those of a pipeline's events stay: see the documentation."""
    from datetime import timedelta

    from semel.display import printing

    with _inbox(url, schema, config) as inbox:
        gone = inbox.purge(timedelta(days=older_than))
    if as_json:
        printing.document({"schema": schema, "purged": gone})
    else:
        printing.tell(f"{gone} effects are forgotten; a call with the key of one of them does it again")
