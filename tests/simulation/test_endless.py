"""A run that never ends is a finding, not a simulation that says nothing any more."""

from __future__ import annotations

import asyncio
import time

import pytest

from semel.testing.clock import run_virtual
from tests.simulation.work import Endless, ended


def test_a_run_that_goes_round_in_circles_is_ended() -> None:
    """Whether virtual time goes on, or one callback never comes back."""

    async def circles() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(1)

    async def stands() -> None:
        while True:
            pass

    for run in (circles, stands):
        begun = time.monotonic()
        with pytest.raises(Endless), ended(0.3):
            run_virtual(run())
        assert time.monotonic() - begun < 5


def test_a_run_that_ends_is_left_alone() -> None:
    with ended(0.3):
        run_virtual(asyncio.sleep(1_000))
    time.sleep(0.4)
