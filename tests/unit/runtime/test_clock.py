"""The real clock, and the switch that sets it wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from semel.errors import ConfigError
from semel.runtime.clock import OFFSET, SystemClock


def off_by_s(clock: SystemClock) -> int:
    return round(clock.time() - time.time())


def test_a_clock_is_the_system_s_own_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMEL_CLOCK_OFFSET_MS", raising=False)
    assert SystemClock().time is time.time


def test_the_clock_is_off_by_what_the_switch_or_its_file_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEMEL_CLOCK_OFFSET_MS", "-3600000")
    assert SystemClock().time() - time.time() == pytest.approx(-3600, abs=5)
    (tmp_path / "offset").write_bytes(OFFSET.pack(7_200_000))
    monkeypatch.setenv("SEMEL_CLOCK_OFFSET_MS", str(tmp_path / "offset"))
    assert SystemClock().time() - time.time() == pytest.approx(7200, abs=5)


@pytest.mark.parametrize("said", ["abc", "1.5", "/there/is/no/such/file"])
def test_a_switch_that_says_no_time_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("SEMEL_CLOCK_OFFSET_MS", said)
    with pytest.raises(ConfigError, match="is neither a whole number of ms nor a file"):
        SystemClock()


def test_a_clock_jumps_forward_and_back_while_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    offset.write_bytes(OFFSET.pack(0))
    monkeypatch.setenv("SEMEL_CLOCK_OFFSET_MS", str(offset))
    clock, steady = SystemClock(), SystemClock().monotonic()
    seen = [off_by_s(clock)]
    with offset.open("r+b") as file:
        for jump_ms in (600_000, -2_000, 0):
            file.seek(0)
            file.write(OFFSET.pack(jump_ms))
            file.flush()
            seen.append(off_by_s(clock))
    assert seen == [0, 600, -2, 0]
    assert 0 <= clock.monotonic() - steady < 30
