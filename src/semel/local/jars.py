"""Kafka's jars: fetched by Maven, pinned by version and by the SHA-256 of every single file.

Only Kafka's broker and what it needs at run time: no tools, no Streams, no shell scripts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from semel.local.cache import cache_dir, exclusive
from semel.local.errors import ChecksumMismatch, LocalKafkaError, ToolMissing

NEWEST = "4.1.1"
VERSIONS = (NEWEST, "3.9.1")

_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_POM = """\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>semel</groupId>
  <artifactId>local-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


def pinned(version: str) -> dict[str, str]:
    """File name -> SHA-256 of every jar of a Kafka version. Raises `LocalKafkaError` for one semel does not know."""
    if version not in VERSIONS:
        raise LocalKafkaError(f"Kafka {version} is not among the versions semel can run here: {', '.join(VERSIONS)}")
    return parse_checksums((files("semel.local") / f"kafka-{version}.sha256").read_text())


def parse_checksums(text: str) -> dict[str, str]:
    """Reads what `sha256sum *.jar` prints."""
    pairs = (line.split() for line in text.splitlines() if line.strip())
    return {name.removeprefix("*"): digest for digest, name in pairs}


def verify(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises `ChecksumMismatch` unless the folder holds exactly the expected jars."""
    present = {path.name for path in folder.glob("*.jar")}
    if missing := sorted(expected.keys() - present):
        raise ChecksumMismatch(f"Maven brought {len(present)} jars, and not: {', '.join(missing)}")
    if foreign := sorted(present - expected.keys()):
        raise ChecksumMismatch(f"Maven brought jars that are not pinned: {', '.join(foreign)}")
    for name, digest in sorted(expected.items()):
        actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if actual != digest:
            raise ChecksumMismatch(
                f"{name} has SHA-256 {actual}, pinned is {digest}. It was damaged or replaced on the way and is not "
                "used; delete it from Maven's local repository and try again"
            )


def provide(version: str, progress: Callable[[str], None]) -> list[Path]:
    """The jars of a Kafka version, in class path order, fetched and verified where the cache has none.

    Raises `ToolMissing` without Maven, `ChecksumMismatch`, or `LocalKafkaError` where Maven fails.
    """
    expected = pinned(version)
    home = version_dir(version)
    libs = home / "libs"
    jars = [libs / name for name in sorted(expected)]
    if not all(jar.is_file() for jar in jars):
        with exclusive(home / "lock"):
            if not all(jar.is_file() for jar in jars):
                _fetch(version, expected, libs, progress)
    return jars


def version_dir(version: str) -> Path:
    """Everything cached for one Kafka version."""
    return cache_dir() / "kafka" / version


def _fetch(version: str, expected: Mapping[str, str], libs: Path, progress: Callable[[str], None]) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ToolMissing("Maven is not installed, and Kafka's jars come by it. Install it: apt-get install -y maven")
    progress(f"fetching Kafka {version} ({len(expected)} jars, about 45 MB)")
    with tempfile.TemporaryDirectory(dir=libs.parent) as folder:
        staging = Path(folder)
        (staging / "pom.xml").write_text(_POM.format(version=version))
        command = [maven, "-q", "-B", _COPY, "-DincludeScope=runtime", "-DoutputDirectory=libs"]
        done = subprocess.run(
            command, cwd=staging, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode != 0:
            told = (done.stdout + done.stderr).strip().splitlines()
            raise LocalKafkaError(f"Maven could not fetch Kafka {version}:\n" + "\n".join(told[:6]))
        verify(staging / "libs", expected)
        shutil.rmtree(libs, ignore_errors=True)
        os.replace(staging / "libs", libs)
