"""The state directory: owned by one app and instance, locked by one process, of one version."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from semel.cli.exits import FINDING, USAGE, code_of
from semel.errors import InstanceTaken, StateDirectoryError
from semel.state.directory import FORMAT, StateDirectory, first_free_instance
from tests.unit.forked import forked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "app" / "w1"


def made(path: Path, app: str = "app", instance: str = "w1") -> None:
    StateDirectory(path, app, instance).release()


def test_a_directory_is_made_and_found_again_by_its_owner(path: Path) -> None:
    made(path)
    assert orjson.loads((path / "OWNER.json").read_bytes()) == {"format": FORMAT, "app": "app", "instance": "w1"}
    again = StateDirectory(path, "app", "w1")
    assert again.database == path / "db"
    again.release()
    again.release()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_directory_is_for_its_user_alone(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made(path)
    finally:
        os.umask(before)
    for part in (path, path.parent, path.parent.parent):
        assert part.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o077 == 0 for file in path.iterdir() if file.name == "LOCK")


def test_a_directory_of_an_earlier_version_becomes_its_users_alone_and_what_is_above_it_stays(path: Path) -> None:
    path.mkdir(parents=True)
    path.parent.chmod(0o755)
    path.chmod(0o755)
    made(path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o700, 0o755)


def test_a_directory_that_this_user_may_write_but_does_not_own_is_used_and_said_to_be_open(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir(parents=True)
    path.chmod(0o777)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    made(path)
    [said] = caplog.messages
    assert str(path) in said and "chown" in said


def test_a_directory_is_held_by_one_at_a_time(path: Path) -> None:
    held = StateDirectory(path, "app", "w1")
    with pytest.raises(InstanceTaken, match=r"'w1' runs already; .* --instance"):
        StateDirectory(path, "app", "w1")
    held.release()
    made(path)


def test_the_lock_of_a_process_that_was_killed_is_free(path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from semel.state.directory import StateDirectory\n"
        "held = StateDirectory(pathlib.Path(sys.argv[1]), 'app', 'w1')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InstanceTaken):
            made(path)
        other.kill()
    made(path)


@pytest.mark.parametrize(("app", "instance"), [("other", "w1"), ("app", "w2")])
def test_a_directory_of_somebody_else_is_refused(path: Path, app: str, instance: str) -> None:
    made(path)
    with pytest.raises(StateDirectoryError, match="belongs to app 'app', instance 'w1'"):
        made(path, app, instance)
    # It is not held on to.
    made(path)


def test_a_directory_of_another_version_is_refused(path: Path) -> None:
    made(path)
    owner = {"format": FORMAT + 1, "app": "app", "instance": "w1"}
    (path / "OWNER.json").write_bytes(orjson.dumps(owner))
    with pytest.raises(StateDirectoryError, match=f"state format {FORMAT + 1}, this version of semel reads {FORMAT}"):
        made(path)


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"5", b"null"])
def test_an_owner_that_cannot_be_read_is_refused_with_a_way_out(path: Path, content: bytes) -> None:
    made(path)
    (path / "OWNER.json").write_bytes(content)
    with pytest.raises(StateDirectoryError, match="to rebuild its state"):
        made(path)


def test_a_database_without_an_owner_is_not_taken_over(path: Path) -> None:
    (path / "db").mkdir(parents=True)
    with pytest.raises(StateDirectoryError, match=r"no OWNER\.json"):
        made(path)


def test_a_place_that_is_no_directory_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirectoryError, match="set state_dir to another place"):
        made(tmp_path / "file" / "w1")


def test_the_first_free_instance_is_the_first_by_name_that_nobody_holds(tmp_path: Path) -> None:
    assert first_free_instance(tmp_path, "app") is None
    for name in ("w3", "w1", "w2"):
        made(tmp_path / "app" / name, instance=name)
    (tmp_path / "app" / "w0").mkdir()
    (tmp_path / "app" / "a file").write_text("")
    assert first_free_instance(tmp_path, "app") == "w1"
    first, second = (StateDirectory(tmp_path / "app" / name, "app", name) for name in ("w1", "w2"))
    assert first_free_instance(tmp_path, "app") == "w3"
    assert first_free_instance(tmp_path, "other") is None
    first.release()
    assert first_free_instance(tmp_path, "app") == "w1"
    second.release()


def test_a_place_that_can_be_none_is_a_wrong_setting_and_a_full_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirectoryError) as refused:
        made(tmp_path / "file" / "w1")
    assert code_of(refused.value) == USAGE

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("semel.state.directory.os.open", full)
    with pytest.raises(StateDirectoryError) as later:
        made(tmp_path / "w1")
    assert code_of(later.value) == FINDING


def test_a_process_that_user_code_forks_keeps_no_lock_of_a_worker_that_is_gone(path: Path) -> None:
    held = StateDirectory(path, "app", "w1")
    with forked():
        held.release()
        made(path)


def test_the_lock_of_a_worker_is_its_own_however_its_children_end(path: Path) -> None:
    held = StateDirectory(path, "app", "w1")
    with forked():
        pass
    with pytest.raises(InstanceTaken):
        made(path)
    held.release()


def test_who_holds_a_directory_is_named(path: Path) -> None:
    held = StateDirectory(path, "app", "w1")
    with pytest.raises(InstanceTaken, match=rf"locked by another process \(pid {os.getpid()}\): instance 'w1' runs"):
        made(path)
    held.release()


@pytest.mark.parametrize("said", ['"1"', "null", "1.0", "true", "[1]"])
def test_a_format_that_is_no_number_is_not_mistaken_for_one(path: Path, said: str) -> None:
    made(path)
    (path / "OWNER.json").write_text(f'{{"format":{said},"app":"app","instance":"w1"}}')
    with pytest.raises(StateDirectoryError, match=rf"the format is {re.escape(said)}, which is no number.*remove"):
        made(path)
