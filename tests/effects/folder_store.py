"""A store in some forty lines, as somebody may write one for Redis or S3: a folder whose files nobody replaces unseen.

What it stands on: one call that creates what is not there (`open(…, "x")`; `SET NX`, `If-None-Match: *`), one that replaces
what is still as it was seen (here under the lock; `WATCH`, `If-Match`), and something that ends with its process (`flock`; a
lease that is renewed).
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from semel.effects.decisions import StoredClaim
from semel.effects.effect import Effect, Outcome


class FolderSession:
    """`semel.effects.elsewhere.Session` over files: `{digest}` is the row, `{digest}.lock` is held by who is at it."""

    def __init__(self, folder: Path, effect: Effect, owner: str) -> None:
        self._row = folder / effect.key.digest.hex()
        self._effect, self._owner = effect, owner
        self._lock = os.open(self._row.with_suffix(".lock"), os.O_CREAT | os.O_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._lock)

    def claim(self) -> StoredClaim | None:
        held = not self._locked()
        if not held and not self._row.exists():
            self._write(done=False, outcome=None)
            return None
        with suppress(FileNotFoundError):
            row = json.loads(self._row.read_bytes())
            outcome = None if row["outcome"] is None else row["outcome"].encode()
            return StoredClaim(bytes.fromhex(row["payload"]), row["owner"], row["done"], outcome, held=held)
        return StoredClaim(self._effect.payload, "", False, held=True)

    def take_over(self, seen: str) -> bool:
        if not self._locked() or json.loads(self._row.read_bytes())["owner"] != seen:
            return False
        self._write(done=False, outcome=None)
        return True

    def keep(self, outcome: Outcome) -> bool:
        if json.loads(self._row.read_bytes())["owner"] != self._owner:
            return False
        self._write(done=True, outcome=None if outcome.raw is None else outcome.raw.decode())
        return True

    def release(self) -> None:
        self._row.unlink()

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _write(self, **columns: Any) -> None:
        new = self._row.with_suffix(f".{self._owner}")
        new.write_text(json.dumps({"payload": self._effect.payload.hex(), "owner": self._owner, **columns}))
        new.replace(self._row)
