"""The first record of a new cluster's metadata log: which features it starts with.

Kafka's StorageTool writes it, in a JVM of its own. It depends on nothing but the version, so it is made once and kept.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from semel.local.cache import exclusive
from semel.local.errors import LocalKafkaError
from semel.local.jars import version_dir
from semel.local.java import Java
from semel.local.properties import Node, render

_ANY_CLUSTER_ID = "c2VtZWwtbG9jYWwta2Fma2E"


def bootstrap_checkpoint(version: str, java: Java, classpath: str) -> bytes:
    """The bytes of `bootstrap.checkpoint` for a Kafka version. Raises `LocalKafkaError` where StorageTool fails."""
    kept = version_dir(version) / "bootstrap.checkpoint"
    if not kept.exists():
        with exclusive(version_dir(version) / "lock"):
            if not kept.exists():
                _make(kept, java, classpath)
    return kept.read_bytes()


def _make(kept: Path, java: Java, classpath: str) -> None:
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        scratch = Path(folder)
        node = Node(1, 1, 2)  # ports that nothing listens on: formatting opens none
        config = scratch / "server.properties"
        config.write_text(render(node, [node], str(scratch / "data"), {}))
        command = [
            str(java.executable),
            *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classpath),
            *("kafka.tools.StorageTool", "format", "-t", _ANY_CLUSTER_ID, "-c", str(config)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        made = scratch / "data" / "bootstrap.checkpoint"
        if done.returncode != 0 or not made.exists():
            raise LocalKafkaError(f"Kafka's StorageTool failed:\n{(done.stdout + done.stderr).strip()[-1500:]}")
        os.replace(made, kept)
