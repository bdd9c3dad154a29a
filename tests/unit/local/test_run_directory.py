from __future__ import annotations

from pathlib import Path

import pytest

from semel.local.run_directory import FolderTaken, RunFolder


def test_a_folder_is_one_runs_at_a_time(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run", "semel up"), RunFolder(tmp_path / "run", "semel up")
    first.take()
    with pytest.raises(FolderTaken, match=r"another `semel up` runs in this directory .*run\); let it end"):
        second.take()
    assert (first.held, second.held) == (True, False)
    first.release()
    second.take()
    second.release()
    second.release()


def test_what_an_earlier_run_left_is_gone_and_what_is_not_a_runs_stays(tmp_path: Path) -> None:
    for name in ("kafka/b1", "state/app", "logs", "mine"):
        (tmp_path / name).mkdir(parents=True)
    folder = RunFolder(tmp_path, "semel up")
    folder.take()
    folder.clear(print, within_s=1.0)
    folder.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "mine"]
