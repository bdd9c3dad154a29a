"""A folder that one run on this machine has to itself, with the run's own Kafka in it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from semel.local.errors import LocalKafkaError
from semel.local.kafka import LocalKafka

# What an earlier run left here is no use to the next one.
_LEFT = ("kafka", "state", "logs")


class FolderTaken(LocalKafkaError):
    """Another run of the same command works in the folder."""


class RunFolder:
    """`command`: whose it is, as a user types it. `kafka`: where the run's Kafka keeps its data."""

    def __init__(self, path: Path, command: str) -> None:
        self.path = path
        self.kafka = path / "kafka"
        self._command = command
        self._lock: IO[str] | None = None

    @property
    def held(self) -> bool:
        return self._lock is not None

    def take(self) -> None:
        """Until `release`, or until this process ends. FolderTaken."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise FolderTaken(
                f"another `{self._command}` runs in this directory ({self.path}); let it end, or stop it with Ctrl-C"
            ) from None
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def clear(self, say: Callable[[str], None], *, within_s: float) -> None:
        """Nothing of an earlier run is left: neither data, state and logs nor, if it was killed, its Kafka."""
        old = LocalKafka.existing(self.kafka)
        if old is not None and old.pids:
            say("stopping the Kafka that an earlier run left behind")
            old.stop(within_s)
        for name in _LEFT:
            shutil.rmtree(self.path / name, ignore_errors=True)
