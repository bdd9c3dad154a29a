"""A cluster of real Kafka brokers on the loopback, known by its data directory.

Whatever is needed to find the cluster again (ports, pids, cluster id) stands in `cluster.json` there, so any process
may ask about it or stop it.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from semel.local import jars, ports, probe
from semel.local.cache import exclusive
from semel.local.errors import LocalKafkaError, NotReady
from semel.local.format import bootstrap_checkpoint
from semel.local.java import Java, find_java
from semel.local.process import ProcessId, end, launch, send, wait_gone
from semel.local.properties import HOST, Node, render

MAIN_CLASS = "kafka.Kafka"
# For how long the port of a broker that was killed may still be its own: its threads end one after the other.
LET_GO_S = 5.0


def silent(_message: str) -> None:
    """Progress for callers that show none."""


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What `cluster.json` holds."""

    version: str
    cluster_id: str
    nodes: tuple[Node, ...]
    processes: Mapping[int, ProcessId]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> _Cluster:
        read: dict[str, Any] = json.loads(text)
        return cls(
            version=read["version"],
            cluster_id=read["cluster_id"],
            nodes=tuple(Node(**node) for node in read["nodes"]),
            processes={int(node): ProcessId(**process) for node, process in read["processes"].items()},
        )


class LocalKafka:
    """Kafka on 127.0.0.1, one broker or several, each broker also a controller. Node ids count from 1.

    `port=0` takes free ports between 20000 and 32767 and keeps them between runs where they are still free; another
    `port` is that of node 1, the next node has the next one. `properties` (or what a function of the node gives) win
    over the defaults of `semel.local.properties` and take effect at the next start. Data is kept until the directory is
    deleted.

    `detached` brokers outlive the process that started them; others are killed with it. `full_jit` lets the JVM
    optimise fully: slower to start, faster under a long load.

    Every method that waits raises `NotReady` when its time is over, with the end of the broker's log.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        version: str = jars.NEWEST,
        port: int = 0,
        brokers: int = 1,
        properties: Mapping[str, str] | Callable[[Node], Mapping[str, str]] | None = None,
        detached: bool = False,
        heap_mb: int = 256,
        full_jit: bool = False,
        jvm_options: Sequence[str] = (),
        progress: Callable[[str], None] = silent,
    ) -> None:
        jars.pinned(version)
        if brokers < 1:
            raise LocalKafkaError(f"brokers={brokers}: a cluster has at least one")
        self.data_dir = Path(data_dir).absolute()
        self.version = version
        self._port = port
        self._brokers = brokers
        self._properties = properties
        self._detached = detached
        self._heap_mb = heap_mb
        self._full_jit = full_jit
        self._jvm_options = tuple(jvm_options)
        self._progress = progress

    @classmethod
    def existing(cls, data_dir: Path | str) -> LocalKafka | None:
        """The cluster that was started in this directory before, to ask about it or stop it; None if there is none."""
        cluster = _load(Path(data_dir).absolute())
        if cluster is None:
            return None
        return cls(data_dir, version=cluster.version, brokers=len(cluster.nodes))

    # -- asking

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The brokers of this data directory, running or not; empty before the first start."""
        cluster = self._load()
        return cluster.nodes if cluster else ()

    @property
    def bootstrap(self) -> str:
        """`host:port` of every broker, comma-separated. Raises `LocalKafkaError` before the first start."""
        if not (nodes := self.nodes):
            raise LocalKafkaError(f"No Kafka was ever started in {self.data_dir}")
        return ",".join(f"{HOST}:{node.port}" for node in nodes)

    @property
    def pids(self) -> dict[int, int]:
        """Node id -> pid of the brokers whose process is alive now."""
        cluster = self._load()
        return {node: p.pid for node, p in cluster.processes.items() if p.alive} if cluster else {}

    @property
    def running(self) -> bool:
        """True if every broker's process is alive."""
        return bool(nodes := self.nodes) and self.pids.keys() == {node.id for node in nodes}

    def log_path(self, node: int = 1) -> Path:
        """What the broker printed: warnings and errors."""
        return self._node_dir(node) / "broker.log"

    def active_segment(self, topic: str, partition: int) -> int:
        """The first offset of the segment that is written to; of several replicas the last one's. 0 where there is none."""
        folders = (self._node_dir(node.id) / "data" / f"{topic}-{partition}" for node in self.nodes)
        return max((int(segment.stem) for folder in folders for segment in folder.glob("*.log")), default=0)

    # -- starting and stopping

    def start(self, timeout_s: float = 60.0) -> None:
        """Start what does not run yet and wait until every broker serves; quick if all of it runs already.

        Raises `PortTaken` where a port belongs to another process, `ToolMissing` without Java or Maven,
        `LocalKafkaError` where the directory holds a cluster of another version or size.
        """
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self.data_dir, error) from error
        with exclusive(self.data_dir / "lock"):
            cluster = self._place(self._load())
            java, classpath = self._runtime()
            down = [node for node in cluster.nodes if not _is_alive(cluster, node)]
            ours = [node for node in down if node.id in cluster.processes]
            ports.refuse_taken((p for node in ours for p in (node.port, node.controller_port)), wait_s=LET_GO_S)
            ports.refuse_taken(p for node in down for p in (node.port, node.controller_port))
            for node in down:
                cluster = self._launch(cluster, node, java, classpath)
            try:
                self._wait_ready(cluster, cluster.nodes, timeout_s)
            except BaseException:
                started = [cluster.processes[node.id] for node in down]
                end(started, 0.0)
                raise

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM to all brokers, SIGKILL to those that are still there after `grace_s`. Nothing runs: no error."""
        with exclusive(self.data_dir / "lock"):
            if cluster := self._load():
                # Brokers that hand over to each other need a majority of controllers, and all are leaving: the last
                # two would wait for ever.
                end(list(cluster.processes.values()), grace_s if len(cluster.nodes) == 1 else min(grace_s, 3.0))

    def stop_node(self, node: int = 1, grace_s: float = 10.0) -> None:
        """SIGTERM to one broker: it hands its partitions over where there are others."""
        end([self._process(node)], grace_s)

    def kill9(self, node: int = 1) -> None:
        """SIGKILL to one broker; returns when its process is gone."""
        process = self._process(node)
        send(process, signal.SIGKILL)
        if not wait_gone([process], 10.0):
            raise NotReady(f"Broker {node} (pid {process.pid}) does not die")

    def restart(self, node: int = 1, timeout_s: float = 60.0) -> None:
        """Stop one broker if it runs, start it on the same port and wait until it serves.

        After `kill9` that is not before the cluster gave the old session up: 1.5 s with one broker, 3 s with more.
        """
        self.stop_node(node)
        with exclusive(self.data_dir / "lock"):
            cluster = self._load()
            assert cluster is not None, "stop_node found it"
            wanted = _find(cluster, node)
            java, classpath = self._runtime()
            ports.refuse_taken((wanted.port, wanted.controller_port), wait_s=LET_GO_S)
            cluster = self._launch(cluster, wanted, java, classpath)
            self._wait_ready(cluster, (wanted,), timeout_s)

    def __enter__(self) -> LocalKafka:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- the directory

    def _node_dir(self, node: int) -> Path:
        return self.data_dir / f"node-{node}"

    def _load(self) -> _Cluster | None:
        return _load(self.data_dir)

    def _save(self, cluster: _Cluster) -> None:
        target = self.data_dir / "cluster.json"
        draft = target.with_suffix(".tmp")
        draft.write_text(cluster.to_json())
        os.replace(draft, target)

    def _process(self, node: int) -> ProcessId:
        cluster = self._load()
        if cluster is None or node not in cluster.processes:
            raise LocalKafkaError(f"There is no broker {node} in {self.data_dir}")
        return cluster.processes[node]

    # -- one start

    def _place(self, kept: _Cluster | None) -> _Cluster:
        """The cluster to run: a new one, or the kept one with ports that suit this start."""
        if kept is None:
            cluster = _Cluster(self.version, _random_id(), self._choose_nodes({}), {})
        else:
            self._refuse_another_shape(kept)
            if any(process.alive for process in kept.processes.values()):
                return kept
            cluster = replace(kept, nodes=self._choose_nodes({node.id: node for node in kept.nodes}))
        self._save(cluster)
        return cluster

    def _refuse_another_shape(self, kept: _Cluster) -> None:
        if (kept.version, len(kept.nodes)) != (self.version, self._brokers):
            raise LocalKafkaError(
                f"{self.data_dir} holds Kafka {kept.version} with {len(kept.nodes)} broker(s), asked for was "
                f"{self.version} with {self._brokers}. Use another data directory, or delete this one"
            )
        first = kept.nodes[0]
        if self._port not in {0, first.port} and any(process.alive for process in kept.processes.values()):
            raise LocalKafkaError(
                f"{self.data_dir} already runs Kafka on port {first.port}, asked for was {self._port}. Stop it first"
            )

    def _choose_nodes(self, kept: Mapping[int, Node]) -> tuple[Node, ...]:
        ids = range(1, self._brokers + 1)
        fixed = {node: self._port + node - 1 for node in ids} if self._port else {}
        chosen: list[Node] = []
        taken = set(fixed.values())
        for node in ids:
            old = kept.get(node)
            port = fixed.get(node) or _keep_or_choose(old.port if old else 0, taken)
            taken.add(port)
            controller_port = _keep_or_choose(old.controller_port if old else 0, taken)
            taken.add(controller_port)
            chosen.append(Node(node, port, controller_port))
        return tuple(chosen)

    def _runtime(self) -> tuple[Java, str]:
        java = find_java()
        return java, ":".join(str(jar) for jar in jars.provide(self.version, self._progress))

    def _launch(self, cluster: _Cluster, node: Node, java: Java, classpath: str) -> _Cluster:
        home = self._node_dir(node.id)
        log_dir = home / "data"
        log_dir.mkdir(parents=True, exist_ok=True)
        config = home / "server.properties"
        given = self._properties(node) if callable(self._properties) else self._properties
        config.write_text(render(node, cluster.nodes, str(log_dir), given or {}))
        if not (log_dir / "meta.properties").exists():
            (log_dir / "bootstrap.checkpoint").write_bytes(bootstrap_checkpoint(self.version, java, classpath))
            (log_dir / "meta.properties").write_text(
                f"version=1\ncluster.id={cluster.cluster_id}\nnode.id={node.id}\ndirectory.id={_random_id()}\n"
            )
        command = [str(java.executable), *self._jvm(java), "-cp", classpath, MAIN_CLASS, str(config)]
        process = launch(command, self.log_path(node.id), detached=self._detached)
        cluster = replace(cluster, processes={**cluster.processes, node.id: process})
        self._save(cluster)
        return cluster

    def _jvm(self, java: Java) -> list[str]:
        options = [
            f"-Xmx{self._heap_mb}m",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            "-Djava.awt.headless=true",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
        ]
        if not self._full_jit:
            options.append("-XX:TieredStopAtLevel=1")
        archive = class_archive(self.version, java)
        if archive.exists() and not self._jvm_options:
            options += [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off"]
        return [*options, *self._jvm_options]

    def _wait_ready(self, cluster: _Cluster, wanted: Sequence[Node], timeout_s: float) -> None:
        """Until each wanted broker answers as a member of this very cluster and knows all the wanted ones."""
        deadline = time.monotonic() + timeout_s
        expected = {node.id for node in wanted}
        for node in wanted:
            while True:
                view = probe.ask(node.port)
                if view is not None and view.cluster_id == cluster.cluster_id and expected <= view.brokers:
                    break
                if not cluster.processes[node.id].alive:
                    raise NotReady(f"Broker {node.id} ended while starting.{self._log_end(node.id)}")
                if time.monotonic() > deadline:
                    raise NotReady(
                        f"Broker {node.id} did not answer on port {node.port} within {timeout_s:g} s."
                        f"{self._log_end(node.id)}"
                    )
                time.sleep(0.03)

    def _log_end(self, node: int) -> str:
        lines = self.log_path(node).read_text(errors="replace").strip().splitlines()
        return f" The end of {self.log_path(node)}:\n" + "\n".join(lines[-15:])


def class_archive(version: str, java: Java) -> Path:
    """Where Kafka's classes lie ready to be mapped, for exactly this Java runtime; made by `semel.local.install`."""
    return jars.version_dir(version) / f"classes-{java.fingerprint}.jsa"


def _load(data_dir: Path) -> _Cluster | None:
    kept = data_dir / "cluster.json"
    try:
        return _Cluster.from_json(kept.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(data_dir, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LocalKafkaError(f"{kept} is damaged ({error!r}); delete {data_dir} to start anew") from error


def _unusable(data_dir: Path, error: OSError) -> LocalKafkaError:
    return LocalKafkaError(
        f"{data_dir} cannot hold a broker's data ({error.strerror}); give it another directory: --data"
    )


def _is_alive(cluster: _Cluster, node: Node) -> bool:
    process = cluster.processes.get(node.id)
    return process is not None and process.alive


def _find(cluster: _Cluster, node: int) -> Node:
    return next(n for n in cluster.nodes if n.id == node)


def _keep_or_choose(port: int, taken: set[int]) -> int:
    if port and port not in taken and ports.is_free(port):
        return port
    return ports.choose(1, taken)[0]


def _random_id() -> str:
    """A Kafka UUID: 22 characters of URL-safe base 64, none that a command line takes for an option."""
    while True:
        text = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
