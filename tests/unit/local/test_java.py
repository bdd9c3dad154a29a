from __future__ import annotations

from pathlib import Path

import pytest

from semel.local.errors import ToolMissing
from semel.local.java import find_java, parse_major

JAVA = Path("java")


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('openjdk version "25" 2025-09-16', 25),
        ('java version "1.8.0_402"', 8),
    ],
)
def test_the_major_version_is_read_from_what_java_prints(text: str, major: int) -> None:
    assert parse_major(text, JAVA) == major


def test_a_program_that_is_no_java_is_refused_with_its_words() -> None:
    with pytest.raises(ToolMissing, match="Unable to locate"):
        parse_major("Unable to locate a Java Runtime.", JAVA)


def java_that_says(folder: Path, version: str) -> None:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)


def test_java_home_comes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java_that_says(tmp_path / "home", "21.0.1")
    java_that_says(tmp_path / "path", "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    assert find_java().major == 21


def test_a_java_too_old_for_kafka_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java_that_says(tmp_path, "11.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ToolMissing, match="is Java 11; Kafka needs 17 or newer"):
        find_java()


def test_a_replaced_java_has_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java_that_says(tmp_path, "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    before = find_java().fingerprint
    assert find_java().fingerprint == before
    (tmp_path / "bin" / "java").write_text("#!/bin/sh\necho 'openjdk version \"17.0.15\"' >&2\n")
    assert find_java().fingerprint != before
