"""What an engine stands on in its process."""

from __future__ import annotations

from pathlib import Path

import pytest

from semel.config import Settings
from semel.state.store import Store
from semel.worker.engine_host import own_directory


def test_user_code_that_changes_the_working_directory_moves_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, directory = own_directory(Settings(state_dir=Path("state")), "app", "w1")
    store = Store(directory.database, cache_mb=2, buffer_mb=2)
    monkeypatch.chdir("/")
    store.reopen()
    store.check_writable()
    store.close()
    directory.release()
    assert directory.database == tmp_path / "state" / "app" / "w1" / "db"
