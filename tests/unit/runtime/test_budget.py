"""What a worker may hold: a part of what there is, whoever limits it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from semel.config import Settings
from semel.runtime.budget import LEAST_BYTES, MOST_BYTES, available_bytes, default_budget, shares
from semel.worker.engine_host import engine_settings
from semel.worker.metrics import exposition
from tests.unit.harness import World

GIB = 1 << 30


def machine(path: Path, total: int, limits: dict[str, str], own: str) -> int:
    (path / "meminfo").write_text(f"MemFree: 1 kB\nMemTotal:       {total // 1024} kB\n")
    (path / "own").write_text(own)
    for name, limit in limits.items():
        (path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "cgroup" / name).write_text(limit + "\n")
    return available_bytes(path / "cgroup", path / "meminfo", path / "own")


@pytest.mark.parametrize(
    ("limits", "own", "available"),
    [
        ({}, "", 16 * GIB),
        ({"memory.max": "max"}, "0::/\n", 16 * GIB),
        ({"memory.max": str(GIB)}, "0::/\n", GIB),
        ({"a/b/memory.max": "max", "a/memory.max": str(2 * GIB)}, "0::/a/b\n", 2 * GIB),
        ({"other/memory.max": str(GIB)}, "0::/a\n", 16 * GIB),
        ({"memory/a/memory.limit_in_bytes": str(3 * GIB)}, "4:cpu:/x\n3:memory:/a\n", 3 * GIB),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, "3:memory:/\n", 16 * GIB),
    ],
)
def test_what_there_is_is_the_least_of_machine_and_control_groups(
    tmp_path: Path, limits: dict[str, str], own: str, available: int
) -> None:
    assert machine(tmp_path, 16 * GIB, limits, own) == available


def test_a_limit_of_the_process_counts() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))\n"
        "from semel.runtime.budget import available_bytes; print(available_bytes())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) <= 3 << 29


def test_the_budget_is_the_setting_or_a_quarter_of_what_there_is_within_limits() -> None:
    assert engine_settings(Settings(memory_budget_bytes=32 << 20), adopt=False).memory_budget_bytes == 32 << 20
    assert engine_settings(Settings(), adopt=False).memory_budget_bytes == default_budget()
    assert LEAST_BYTES <= default_budget() <= MOST_BYTES
    assert default_budget() in (LEAST_BYTES, MOST_BYTES, available_bytes() // 4)


@pytest.mark.parametrize("budget", [16 << 20, 256 << 20, 8 << 30])
def test_the_shares_are_within_the_budget_with_the_epoch_counted_four_times(budget: int) -> None:
    parts = shares(budget)
    assert parts.source + 4 * parts.epoch + parts.rows + parts.keys + parts.outbox <= budget
    # An event that fits the topic's usual limit fits a transaction.
    assert parts.event >= 4 << 20


async def test_budget_and_use_are_exported(world: World) -> None:
    worker = world.start(memory_budget_bytes=64 << 20)
    world.pay_many(30)
    await world.drained()
    text = exposition(worker.engine).decode()
    (budget,) = [line for line in text.splitlines() if line.startswith('semel_memory_budget_bytes{kind="all"')]
    assert float(budget.split()[-1]) == 64 << 20
    held = worker.engine.held_bytes()
    assert held["rows"] > 0 and held["keys"] > 0
    assert held["source"] == held["epoch"] == held["carry"] == 0
    assert set(worker.engine.budget_bytes()) == {"all", *held}
    for kind in held:
        assert f'semel_memory_held_bytes{{kind="{kind}",pipeline="payments"}}' in text


def test_a_budget_above_the_memory_there_is_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    engine_settings(Settings(memory_budget_bytes=available_bytes()), adopt=False)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    engine_settings(Settings(memory_budget_bytes=999_999_999_999_999), adopt=False)
    assert "it will be killed before it holds so much" in caplog.text
