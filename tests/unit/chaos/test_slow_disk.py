"""Disks that stall, on a real file system where root may mount one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.chaos import disks, slow_disk

WRITER = """
import os, sys
at = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
while True:
    os.pwrite(at, bytes(4096), 0)
    os.fsync(at)
"""


@pytest.fixture(scope="module")
def mountable(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not disks.may_mount(tmp_path_factory.mktemp("mountable"), stalls=True):
        pytest.skip("no file on a loop device may be mounted here")


@pytest.fixture
def folder(tmp_path: Path, mountable: None) -> Iterator[Path]:
    where = tmp_path / "state"
    assert disks.mount(where, stalls=True)
    yield where
    disks.unmount(where)


@pytest.fixture
def writer(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder / "written")])
    yield process
    process.kill()
    process.wait()


def test_whoever_writes_to_a_stalling_disk_waits_and_is_seen_to(folder: Path, writer: subprocess.Popen[bytes]) -> None:
    stalling = slow_disk.Stalling(folder)
    stalling.watch(writer.pid)
    time.sleep(1.5)
    seen = stalling.end()
    assert not seen.failed
    assert seen.stalls >= 3
    assert seen.met >= 2
    assert stalling.end() is seen


def test_who_does_not_write_meets_no_stall(folder: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "30"])
    try:
        stalling = slow_disk.Stalling(folder)
        stalling.watch(sleeper.pid)
        time.sleep(1.0)
        seen = stalling.end()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert (seen.stalls >= 2, seen.met) == (True, 0)


def test_a_disk_is_thawed_when_whoever_stalls_it_dies(folder: Path) -> None:
    """Its standard input ends then, as it does here with the one process that holds the other end of it."""
    script = (
        "import os, sys, time; from pathlib import Path; from semel.chaos.slow_disk import Stalling\n"
        "Stalling(Path(sys.argv[1])); time.sleep(1); os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", script, str(folder)], timeout=20, check=False)
    assert died.returncode == -9
    time.sleep(2 * slow_disk.FROZEN_S)
    assert not slow_disk.thaw(folder)
    began = time.monotonic()
    (folder / "after").write_bytes(b"written")
    assert time.monotonic() - began < slow_disk.FROZEN_S


def test_a_folder_that_was_left_frozen_can_be_unmounted_and_used_again(folder: Path) -> None:
    assert slow_disk.freeze(folder)
    disks.unmount(folder)
    assert not folder.is_mount()
    assert disks.mount(folder, stalls=True)
    assert list(folder.iterdir()) == []


def test_another_folder_gets_a_file_system_of_the_same_kind_or_none(folder: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    try:
        assert disks.mount_like(folder, twin)
        assert disks.can_stall(twin)
    finally:
        disks.unmount(twin)
    assert not disks.mount_like(tmp_path, tmp_path / "other")


def test_a_disk_that_can_be_slow_can_be_full_too(folder: Path) -> None:
    disks.fill(folder)
    with pytest.raises(OSError, match="No space left"):
        (folder / "more").write_bytes(bytes(8192))
    disks.free(folder)
    (folder / "more").write_bytes(bytes(8192))


def test_where_nothing_can_be_stalled_the_reason_is_kept(tmp_path: Path) -> None:
    stalling = slow_disk.Stalling(tmp_path / "nowhere")
    stalling.watch(os.getpid())
    seen = stalling.end()
    assert "nowhere" in seen.failed
    assert str(seen).startswith("it could not be stalled: ")
