"""Where downloads and what is derived from them are kept between projects."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """`$SEMEL_CACHE_DIR`, else `semel` below the user's cache directory. May not exist yet."""
    if own := os.environ.get("SEMEL_CACHE_DIR"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "semel"


@contextmanager
def exclusive(path: Path) -> Generator[None, None, None]:
    """Hold the lock file `path`, waiting for other processes; it ends with the process at the latest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
