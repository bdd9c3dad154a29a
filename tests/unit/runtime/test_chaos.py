"""Random runs from fixed seeds. `python -m tests.unit.runtime.chaos 0 3000` runs more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.runtime.chaos import chaos

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_goes_wrong_each_event_takes_effect_once(tmp_path: Path, seed: int) -> None:
    run = await chaos(tmp_path, seed)
    assert run.faults + run.kills > 0
