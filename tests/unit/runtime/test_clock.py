"""The real clock, and the switch that sets it wrong."""

from __future__ import annotations

from pathlib import Path
from time import time

import pytest

from semel.errors import ConfigError
from semel.runtime.clock import OFFSET, SystemClock


def test_the_clock_is_off_by_what_the_switch_or_its_file_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEMEL_CLOCK_OFFSET_MS", "-3600000")
    assert SystemClock().time() - time() == pytest.approx(-3600, abs=5)
    (tmp_path / "offset").write_bytes(OFFSET.pack(7_200_000))
    monkeypatch.setenv("SEMEL_CLOCK_OFFSET_MS", str(tmp_path / "offset"))
    assert SystemClock().time() - time() == pytest.approx(7200, abs=5)


@pytest.mark.parametrize("said", ["abc", "1.5", "/there/is/no/such/file"])
def test_a_switch_that_says_no_time_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("SEMEL_CLOCK_OFFSET_MS", said)
    with pytest.raises(ConfigError, match="is neither a whole number of ms nor a file"):
        SystemClock()
