from __future__ import annotations

from pathlib import Path

import pytest

from semel.up.workers import Worker

SHOW = "import os; print({n: v for n, v in os.environ.items() if 'SEMEL' in n.upper() or n == 'MINE'}, flush=True); os._exit(0)"


def test_no_setting_of_the_caller_reaches_a_worker_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SEMEL_BROKER would go before the run's own config file, and lead the workers to another cluster."""
    monkeypatch.setenv("SEMEL_BROKER", "kafka://127.0.0.1:1")
    monkeypatch.setenv("semel_web_token", "secret")
    monkeypatch.setenv("MINE", "kept")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.py").write_text(SHOW)
    (tmp_path / "worker.toml").touch()
    worker = Worker("given:pipeline", "w1", 0, tmp_path / "worker.toml", tmp_path / "log")

    worker.start()
    assert worker.wait_gone(60)

    assert (tmp_path / "log").read_text() == "{'MINE': 'kept'}\n"
