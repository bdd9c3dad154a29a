from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from semel.local import jars
from semel.local.errors import ChecksumMismatch, LocalKafkaError, ToolMissing

CONTENT = {"a-1.jar": b"first", "b-2.jar": b"second"}
EXPECTED = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_pinned_jars_are_accepted(folder: Path) -> None:
    jars.verify(folder, EXPECTED)


def test_one_changed_byte_is_refused_by_name(folder: Path) -> None:
    (folder / "b-2.jar").write_bytes(b"seconD")
    with pytest.raises(ChecksumMismatch, match=r"b-2\.jar has SHA-256"):
        jars.verify(folder, EXPECTED)


def test_a_missing_jar_is_refused_by_name(folder: Path) -> None:
    (folder / "a-1.jar").unlink()
    with pytest.raises(ChecksumMismatch, match=r"not: a-1\.jar"):
        jars.verify(folder, EXPECTED)


def test_a_jar_that_is_not_pinned_is_refused_by_name(folder: Path) -> None:
    (folder / "c-3.jar").write_bytes(b"stowaway")
    with pytest.raises(ChecksumMismatch, match=r"not pinned: c-3\.jar"):
        jars.verify(folder, EXPECTED)


@pytest.mark.parametrize("version", jars.VERSIONS)
def test_every_version_pins_its_broker_and_client(version: str) -> None:
    pinned = jars.pinned(version)
    assert {f"kafka_2.13-{version}.jar", f"kafka-clients-{version}.jar"} <= pinned.keys()
    assert all(len(digest) == 64 for digest in pinned.values())


def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LocalKafkaError, match=r"Kafka 2\.8\.0 .* 4\.1\.1, 3\.9\.1"):
        jars.pinned("2.8.0")


def test_without_maven_the_error_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="apt-get install -y maven"):
        jars.provide("4.1.1", progress=lambda _message: None)


@pytest.fixture
def maven_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`maven_does(script)`: the only program on the path is a Maven that does this; the cache is empty."""

    def install(script: str) -> None:
        maven = tmp_path / "bin" / "mvn"
        maven.parent.mkdir()
        maven.write_text(f"#!/bin/sh\n{script}\n")
        maven.chmod(maven.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("SEMEL_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", str(maven.parent))

    return install


def test_jars_that_fail_the_check_are_not_kept(tmp_path: Path, maven_does: Callable[[str], None]) -> None:
    maven_does("/bin/mkdir libs && echo damaged > libs/kafka_2.13-4.1.1.jar")
    with pytest.raises(ChecksumMismatch):
        jars.provide("4.1.1", progress=lambda _message: None)
    assert list((tmp_path / "cache").rglob("*.jar")) == []


def test_what_maven_says_reaches_the_user(maven_does: Callable[[str], None]) -> None:
    maven_does("echo '[ERROR] no route to host'\nexit 1")
    with pytest.raises(LocalKafkaError, match="no route to host"):
        jars.provide("4.1.1", progress=lambda _message: None)
