"""The wall clock of a worker under `semel chaos`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from semel.runtime.clock import OFFSET, SystemClock


def off_by_s(clock: SystemClock) -> int:
    return round(clock.time() - time.time())


def test_a_clock_is_the_system_s_own_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMEL_CLOCK_OFFSET_MS", raising=False)
    assert SystemClock().time is time.time


def test_a_clock_can_be_off_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMEL_CLOCK_OFFSET_MS", "-60000")
    assert off_by_s(SystemClock()) == -60


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
