"""Small file systems for state directories, so that one can be full, or slow, without the machine being so.

One in memory can be full. One in a file, on a loop device, can be slow, too: it is frozen and thawed again and again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

from semel.chaos import slow_disk

SIZE_MB = 96
_BALLAST = "ballast"
_CHUNK = bytes(1 << 20)


def table_files(state_dir: Path) -> list[Path]:
    """The files that RocksDB has written rows to."""
    return sorted(state_dir.rglob("*.sst"))


def damage(state_dir: Path, seed: int) -> int:
    """Flip bytes in the data of each of RocksDB's table files, as a disk that rots does; the number of these files."""
    rng, damaged = Random(seed), 0
    for path in table_files(state_dir):
        # One may be compacted away meanwhile.
        with contextlib.suppress(OSError), path.open("r+b") as file:
            size = path.stat().st_size
            for _ in range(3):
                at = rng.randrange(max(1, size // 2))
                file.seek(at)
                data = file.read(8)
                file.seek(at)
                file.write(bytes(byte ^ 0xFF for byte in data))
            damaged += 1
    return damaged


def may_mount(folder: Path, *, stalls: bool) -> bool:
    """Whether this process may `mount`, and freeze what it mounts; tried, since a container's root often may not."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    probe = folder / "mount-probe"
    # What an earlier run left, if it was killed right here.
    unmount(probe)
    try:
        return mount(probe, stalls=stalls) and (not stalls or slow_disk.freeze(probe))
    finally:
        unmount(probe)
        shutil.rmtree(probe, ignore_errors=True)
        _image(probe).unlink(missing_ok=True)


def mount(folder: Path, *, stalls: bool) -> bool:
    """A file system of `SIZE_MB`: in memory, or, one that can be frozen, in a file beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not stalls:
        return _done("mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "semel-chaos", str(folder))
    image = _image(folder)
    with image.open("wb") as file:
        file.truncate(SIZE_MB << 20)
    # Nobody pulls a plug here, so that a journal would only write everything twice.
    made = _done("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(image))
    if not made or not _done("mount", "-o", "loop,noatime", str(image), str(folder)):
        return False
    shutil.rmtree(folder / "lost+found", ignore_errors=True)
    return True


def mount_like(other: Path, folder: Path) -> bool:
    """The same kind of file system as the other's; False where that has none of its own."""
    return other.is_mount() and mount(folder, stalls=can_stall(other))


def can_stall(folder: Path) -> bool:
    return folder.is_mount() and _image(folder).exists()


def unmount(folder: Path) -> None:
    """What is still open in it goes with its process."""
    if folder.is_mount():
        slow_disk.thaw(folder)
        _done("umount", "-l", str(folder))


def unmount_below(folder: Path) -> None:
    """What an earlier run that was killed left mounted."""
    for inner in folder.glob("*"):
        unmount(inner)


def fill(folder: Path) -> None:
    """No byte is left."""
    with (folder / _BALLAST).open("wb", buffering=0) as file:
        for chunk in (_CHUNK, _CHUNK[:4096], b"\0"):
            try:
                while file.write(chunk):
                    continue
            except OSError:
                continue


def free(folder: Path) -> None:
    (folder / _BALLAST).unlink(missing_ok=True)


def _image(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.img")


def _done(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
