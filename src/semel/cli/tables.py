"""`semel tables`: the rows of a running application's tables, asked of any of its workers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from semel.cli import exits
from semel.cli.client import Refused, WorkerClient
from semel.display import printing
from semel.errors import ConfigError, SemelError
from semel.web.paths import query, row_path, table_path

DEFAULT_URL = "http://127.0.0.1:6066"
PAGE_ROWS = 1000  # what a worker gives out at once

app = typer.Typer(name="tables", help="Rows of a running application's tables.", no_args_is_help=True)

TableName = Annotated[str, typer.Argument(metavar="TABLE")]
Url = Annotated[str, typer.Option("--url", metavar="URL", help="Any worker of the application.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


# A key may begin with a dash.
@app.command(context_settings={"ignore_unknown_options": True})
def get(
    table: TableName,
    key: Annotated[str, typer.Argument(metavar="KEY")],
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Print the row of KEY.

    Exit code 1: no such row or table, its partition is being restored, or several partitions have one.
    """
    with _refusals(as_json):
        row = WorkerClient(url).get(_path(row_path, table, key))
        if as_json:
            printing.document(row)
        else:
            printing.say(printing.shown(row["value"], indent=2))


@app.command()
def scan(
    table: TableName,
    *,
    prefix: Annotated[str | None, typer.Option(metavar="P", help="Only keys that begin with it.")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="K", help="First key, inclusive.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="K", help="Last key, exclusive.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many rows.")] = 100,
    page: Annotated[str | None, typer.Option(metavar="TOKEN", help="Go on from `next` of the scan before.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Print rows, ordered by partition and key (by key alone for a table with `merge=`)."""
    with _refusals(as_json):
        client = WorkerClient(url)
        rows: list[dict[str, Any]] = []
        while True:
            asked = [
                ("prefix", prefix),
                ("from", start),
                ("to", end),
                ("limit", min(PAGE_ROWS, limit - len(rows))),
                ("page", page),
            ]
            answer = client.get(_path(table_path, table) + _path(query, asked))
            rows += answer["rows"]
            page = answer["next"]
            if page is None or len(rows) >= limit:
                break
        if as_json:
            printing.document({"rows": rows, "next": page})
            return
        printing.rows(("key", "value", "partition"), (_line(row) for row in rows))
        if page is not None:
            printing.tell(f"there are more than the {len(rows)} shown: raise --limit, or go on with --page {page}")


def _line(row: dict[str, Any]) -> tuple[str, str, str]:
    held = row.get("partitions") or [row["partition"]]
    return printing.shown(row["key"]), printing.shown(row["value"]), ",".join(map(str, held))


def _path(build: Any, *parts: Any) -> str:
    try:
        return build(*parts)
    except UnicodeEncodeError as not_text:
        raise ConfigError("an argument is not valid text in this terminal's encoding") from not_text


@contextmanager
def _refusals(as_json: bool) -> Generator[None, None, None]:
    """With `--json` also a refusal is one document; it is said on standard error in any case."""
    try:
        yield
    except SemelError as error:
        if as_json:
            printing.document(
                error.document or {"error": str(error)} if isinstance(error, Refused) else {"error": str(error)}
            )
        printing.tell(f"semel: {error}")
        usage = isinstance(error, Refused) and error.status == 400
        raise typer.Exit(exits.USAGE if usage else exits.code_of(error) or exits.FINDING) from error
