"""`semel worker`: one worker of an application, until it is told to end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

# What Kafka takes as a group instance id; it is also the name of a directory.
INSTANCE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


def _instance(name: str | None) -> str | None:
    if name is not None and not INSTANCE.fullmatch(name):
        raise typer.BadParameter(f"{name!r} may hold letters, digits, '.', '_' and '-', at most 249")
    return name


def worker(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A module (pipelines.payments), or module:name.")],
    *,
    instance: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=_instance,
            help="Name of this worker, the same after a restart; else that of the first state directory not in use.",
        ),
    ] = None,
    web_port: Annotated[
        int | None, typer.Option(metavar="PORT", min=0, max=65_535, help="Port of the web views; 0 for any.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in TOML; else config/local.toml where it is there.")
    ] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take over the offsets of a group that has no recorded positions yet.")
    ] = False,
    halt_after: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="So many different events in a row that fail alike halt their agent; 0: never."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Log JSON lines on standard output.")] = False,
) -> None:
    """Run a worker. SIGTERM or Ctrl-C: finish what is in hand, commit it, and end.

    Exit code 2: the pipeline or a setting is wrong; 3: no broker was met for a minute, or it refuses the
    login; 4: the instance name is taken; 7: it has halted for longer than halted_timeout_ms.
    """
    from semel import project
    from semel.cli import exits, logs
    from semel.config import Settings

    logs.configure(as_json=as_json)
    settings = Settings.load(config, web_port=web_port, halt_after=halt_after)
    target = project.load(pipeline)

    from semel.worker.main import run

    raise typer.Exit(
        exits.code_after(run(target, settings, instance=instance, adopt=adopt, exit_code=exits.code_after))
    )
