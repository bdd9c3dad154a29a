"""`semel kafka`: a real Kafka on this machine, without a container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from semel.cli import exits
from semel.local import jars
from semel.local.install import install as make_ready
from semel.local.kafka import LocalKafka

DEFAULT_PORT = 9092
DEFAULT_DATA = Path(".semel/kafka")

app = typer.Typer(name="kafka", help="A real Apache Kafka on 127.0.0.1: start, stop, status.", no_args_is_help=True)

Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Where its data and logs are kept between runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


@app.command()
def start(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the first broker; a second one has the next.")
    ] = None,
    data: Data = DEFAULT_DATA,
    brokers: Annotated[int | None, typer.Option(min=1, max=9, help="Size of a new cluster (1 unless given).")] = None,
    version: Annotated[
        str | None, typer.Option(metavar="V", help=f"One of {', '.join(jars.VERSIONS)}; 4.1 will do for 4.1.1.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start Kafka in the background and wait until it serves; what runs already in this directory is used as it is.

    The port is 9092, or the one this directory had the last time. Exit code 1: the port belongs to another process,
    or the directory holds another version or size; 3: the broker did not come up.
    """
    wanted_version = _full_version(version) if version else None
    kept = LocalKafka.existing(data)
    was_running = kept is not None and kept.running
    kafka = LocalKafka(
        data,
        version=wanted_version or (kept.version if kept else jars.NEWEST),
        port=port or (kept.nodes[0].port if kept else DEFAULT_PORT),
        brokers=brokers or (len(kept.nodes) if kept else 1),
        detached=True,
        heap_mb=512,
        full_jit=True,
        progress=_tell,
    )
    if not was_running:
        make_ready(kafka.version, _tell)
    kafka.start()
    _tell(f"Kafka {kafka.version} {'was running' if was_running else 'is running'}, data in {kafka.data_dir}")
    typer.echo(json.dumps(_described(kafka)) if as_json else kafka.bootstrap)


@app.command()
def stop(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Stop the Kafka of this directory and keep its data. One that does not run is no error."""
    kafka = LocalKafka.existing(data)
    stopped = kafka.pids if kafka else {}
    if kafka:
        kafka.stop()
    if as_json:
        typer.echo(json.dumps({"stopped": len(stopped)}))
    else:
        _tell(f"stopped {len(stopped)} broker(s)" if stopped else "no broker was running")


@app.command()
def status(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Say which brokers of this directory run, and where. Exit code 0 if all of them do, else 3."""
    kafka = LocalKafka.existing(data)
    described: dict[str, Any] = (
        _described(kafka)
        if kafka
        else {"running": False, "state": "stopped", "data": str(data.absolute()), "brokers": []}
    )
    if as_json:
        typer.echo(json.dumps(described))
    elif kafka is None:
        typer.echo(f"stopped: no Kafka was ever started in {data}")
    else:
        brokers = described["brokers"]
        down = [str(broker["node"]) for broker in brokers if not broker["pid"]]
        how = described["state"]
        if how == "partly running":
            how += f", {len(brokers) - len(down)} of {len(brokers)} brokers, without {', '.join(down)}"
        typer.echo(f"{how}: Kafka {kafka.version}, data in {data}")
        if described["state"] == "partly running":
            _tell("`semel kafka start` starts those that are down")
        for broker in described["brokers"]:
            pid = broker["pid"]
            typer.echo(f"  broker {broker['node']} on {broker['address']}, {f'pid {pid}' if pid else 'not running'}")
    if not described["running"]:
        raise typer.Exit(exits.UNREACHABLE)


@app.command()
def install(
    version: Annotated[str, typer.Option(metavar="V", help=f"One of {', '.join(jars.VERSIONS)}.")] = jars.NEWEST,
) -> None:
    """Fetch and verify all that `start` needs, so that it works offline."""
    full = _full_version(version)
    make_ready(full, _tell)


def _described(kafka: LocalKafka) -> dict[str, Any]:
    pids = kafka.pids
    every = all(node.id in pids for node in kafka.nodes)
    return {
        "running": every,
        "state": "running" if every else "partly running" if pids else "stopped",
        "bootstrap": kafka.bootstrap,
        "version": kafka.version,
        "data": str(kafka.data_dir),
        "brokers": [
            {"node": node.id, "address": address, "pid": pids.get(node.id)}
            for node, address in zip(kafka.nodes, kafka.bootstrap.split(","), strict=True)
        ],
    }


def _full_version(text: str) -> str:
    for known in jars.VERSIONS:
        if known == text or known.startswith(f"{text}."):
            return known
    raise typer.BadParameter(f"{text} is not one of {', '.join(jars.VERSIONS)}", param_hint="--version")


def _tell(message: str) -> None:
    typer.echo(message, err=True)
