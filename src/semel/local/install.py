"""Everything a local Kafka needs, made ready once: jars, the first metadata record, a class archive.

The archive is a memory map of the classes that a broker loads while it starts; with it a start costs half.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from semel.local import jars
from semel.local.cache import exclusive
from semel.local.errors import LocalKafkaError
from semel.local.java import find_java
from semel.local.kafka import LocalKafka, class_archive, silent


def install(version: str = jars.NEWEST, progress: Callable[[str], None] = silent) -> None:
    """Make this Kafka version ready to start, offline from then on. Does nothing where it is.

    Raises `ToolMissing`, `ChecksumMismatch` or `LocalKafkaError`. A class archive that cannot be made is only reported:
    Kafka runs without it.
    """
    java = find_java()
    jars.provide(version, progress)
    archive = class_archive(version, java)
    if archive.exists():
        return
    with exclusive(jars.version_dir(version) / "archive.lock"):
        if archive.exists():
            return
        progress(f"preparing Kafka {version} for quick starts")
        try:
            _train(version, archive)
        except LocalKafkaError as error:
            progress(f"no class archive for Kafka {version}, it will start more slowly: {error}")


def _train(version: str, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        draft = Path(folder) / "draft.jsa"
        options = [f"-XX:ArchiveClassesAtExit={draft}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        kafka = LocalKafka(Path(folder) / "data", version=version, jvm_options=options)
        kafka.start()
        kafka.stop(grace_s=60.0)  # the JVM writes the archive while it ends
        if not draft.exists():
            raise LocalKafkaError(f"the JVM wrote no archive{_why(kafka)}")
        _forget_older(archive)
        os.replace(draft, archive)


def _forget_older(archive: Path) -> None:
    """Archives of runtimes that were replaced since."""
    for older in archive.parent.glob("classes-*.jsa"):
        older.unlink(missing_ok=True)


def _why(kafka: LocalKafka) -> str:
    text = kafka.log_path().read_text(errors="replace").strip()
    return f": {text.splitlines()[-1]}" if text else ""
