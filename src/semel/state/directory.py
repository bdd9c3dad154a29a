"""The state directory of one worker: owned by one app and instance, versioned, locked by one process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson

from semel.errors import InstanceTaken, StateDirectoryError, StateDirectoryUnusable
from semel.runtime.forks import keep_from_children

log = logging.getLogger("semel.store")

FORMAT = 1
# What has to do with the disk, and may be over at the next start; else the setting is wrong.
_FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)


def unusable(path: Path, why: OSError) -> StateDirectoryError:
    """StateDirectoryUnusable, a setting to be changed, unless it has to do with the disk."""
    kind = StateDirectoryError if why.errno in _FULL_OR_BROKEN else StateDirectoryUnusable
    return kind(
        f"the state directory {path} cannot be used ({why.strerror}); make it writable for this user, "
        "free some space, or set state_dir to another place"
    )


class StateDirectory:
    """`{state_dir}/{app}/{instance}`, held by a lock for as long as this object lives. Its user's alone (0700).

    Errors: StateDirectoryError where it cannot be written, or belongs to another app or format version;
    InstanceTaken where another process of this machine holds it.
    """

    def __init__(self, path: Path, app: str, instance: str) -> None:
        self.path = path
        try:
            _make_private(path)
            self._lock = open(os.open(path / "LOCK", os.O_RDWR | os.O_CREAT, 0o600), "rb", buffering=0)  # noqa: SIM115
        except OSError as exc:
            raise unusable(path, exc) from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self.release()
            raise InstanceTaken(
                f"the state directory {path} is locked by another process{_pids(_holders(path / 'LOCK'))}: instance "
                f"{instance!r} runs already; stop it, or start this worker with another --instance"
            ) from exc
        except OSError as exc:
            self.release()
            raise StateDirectoryError(
                f"the state directory {path} cannot be locked ({exc.strerror}); set state_dir to a local disk"
            ) from exc
        keep_from_children(self._lock)
        try:
            self._check_owner(app, instance)
        except BaseException:
            self.release()
            raise

    @property
    def database(self) -> Path:
        return self.path / "db"

    @property
    def crash_notes(self) -> Path:
        """What the agents of the process that holds it have in hand."""
        return self.path / "IN_HAND"

    def release(self) -> None:
        self._lock.close()

    def _check_owner(self, app: str, instance: str) -> None:
        marker = self.path / "OWNER.json"
        wanted = {"format": FORMAT, "app": app, "instance": instance}
        try:
            owner: Any = orjson.loads(marker.read_bytes())
        except FileNotFoundError:
            if self.database.exists():
                raise StateDirectoryError(
                    f"{self.path} holds a database but no OWNER.json; it is not a state directory of semel: "
                    "set state_dir to another place"
                ) from None
            self._write(marker, wanted)
            return
        except (OSError, orjson.JSONDecodeError) as exc:
            raise StateDirectoryError(
                f"{marker} cannot be read ({exc}); remove {self.path} to rebuild its state"
            ) from exc
        if not isinstance(owner, dict):
            raise StateDirectoryError(f"{marker} says nothing of an owner; remove {self.path} to rebuild its state")
        owner = cast("dict[str, Any]", owner)
        if owner.get("app") != app or owner.get("instance") != instance:
            raise StateDirectoryError(
                f"{self.path} belongs to app {owner.get('app')!r}, instance {owner.get('instance')!r}, not to "
                f"{app!r}, {instance!r}; give each app its own state_dir, or remove that directory"
            )
        if type(owner.get("format")) is not int:
            raise StateDirectoryError(
                f"{marker} says that the format is {orjson.dumps(owner.get('format')).decode()}, which is no number: "
                f"something else than semel wrote it; remove {self.path} to rebuild its state"
            )
        if owner["format"] != FORMAT:
            raise StateDirectoryError(
                f"{self.path} has state format {owner.get('format')}, this version of semel reads {FORMAT}; "
                "run the version that wrote it, or remove the directory: it is rebuilt from the changelogs"
            )

    def _write(self, marker: Path, owner: Mapping[str, object]) -> None:
        fresh = marker.with_suffix(".new")
        try:
            with fresh.open("wb") as f:
                f.write(orjson.dumps(owner))
                f.flush()
                os.fsync(f.fileno())
            fresh.replace(marker)
        except OSError as exc:
            raise StateDirectoryError(
                f"the state directory {self.path} cannot be written ({exc.strerror}); free some space or set state_dir"
            ) from exc


def _holders(lock: Path) -> list[int]:
    """Processes that have the file open, as far as this user may see them: where there is no /proc, none."""
    wanted, pids = lock.stat(), list[int]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = any(os.path.samestat(wanted, fd.stat()) for fd in (process / "fd").iterdir())
        except OSError:
            continue
        if held:
            pids.append(int(process.name))
    return sorted(pids)


def _pids(holders: list[int]) -> str:
    if not holders:
        return ""
    return f" (pid{'s' if len(holders) > 1 else ''} {', '.join(map(str, holders))})"


def _make_private(path: Path) -> None:
    """A directory for this user alone, as are those above it that are not there yet; rows of every table lie in it."""
    for part in reversed((path, *path.parents)):
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_mode & 0o077:
        try:
            path.chmod(0o700)
        except PermissionError as exc:
            log.warning(
                "the state directory %s is open to others and belongs to another user, so that this one cannot close it "
                "(%s); rows of every table lie in it: give it to this user (chown)",
                path, exc.strerror,
            )  # fmt: skip


def first_free_instance(state_dir: Path, app: str) -> str | None:
    """The first instance directory of this app, by name, that no process of this machine holds; None if there is none."""
    root = state_dir / app
    if not root.is_dir():
        return None
    for path in sorted(p for p in root.iterdir() if (p / "OWNER.json").is_file()):
        try:
            fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return path.name
        except OSError:
            continue
        finally:
            os.close(fd)
    return None
