"""Every test here runs in virtual time."""

from tests.unit.virtual_time import pytest_asyncio_loop_factories, world

__all__ = ["pytest_asyncio_loop_factories", "world"]
