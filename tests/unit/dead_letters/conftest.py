"""An operator waits for what becomes of its replays: its tests run in virtual time. Runs of the web pages have threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.unit import virtual_time

VIRTUAL = "test_operator.py"


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name == VIRTUAL:
        return virtual_time.pytest_asyncio_loop_factories()
    return {"real": asyncio.new_event_loop}
