"""Small file systems for state directories, so that one can be full without the machine being full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SIZE_MB = 96
_BALLAST = "ballast"
_CHUNK = bytes(1 << 20)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount; tried, since a container's root often may not."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    probe = folder / "mount-probe"
    probe.mkdir(parents=True, exist_ok=True)
    try:
        if not mount(probe):
            return False
        unmount(probe)
        return True
    finally:
        probe.rmdir()


def mount(folder: Path) -> bool:
    """A file system in memory, of `SIZE_MB`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "semel-chaos", str(folder)]
    return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0


def unmount(folder: Path) -> None:
    """What is still open in it goes with its process."""
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, timeout=10, check=False)


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
