"""The real clock and real randomness.

`SEMEL_CLOCK_OFFSET_MS` in the environment sets the wall clock off, for `semel chaos`: by so much, or, where it is the path
of a file, by the eight bytes (signed, native) that stand in it at any moment, so that the clock can jump.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from time import monotonic as steady_time
from time import time as wall_time

from semel.errors import ConfigError

OFFSET = struct.Struct("@q")


class SystemClock:
    monotonic = staticmethod(steady_time)
    time = staticmethod(wall_time)

    def __init__(self) -> None:
        setting = os.environ.get("SEMEL_CLOCK_OFFSET_MS")
        if setting:
            self.time = _wrong(setting)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _wrong(setting: str) -> Callable[[], float]:
    try:
        if not setting.startswith("/"):
            offset_s = int(setting) / 1000
            return lambda: wall_time() + offset_s
        with Path(setting).open("rb") as file:
            shared = mmap.mmap(file.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    except (ValueError, OSError) as exc:
        raise ConfigError(
            f"SEMEL_CLOCK_OFFSET_MS={setting!r:.80} is neither a whole number of ms nor a file that holds one ({exc}); "
            "correct it, or unset it"
        ) from None
    return lambda: wall_time() + OFFSET.unpack_from(shared)[0] / 1000


class SystemRandomness:
    random = staticmethod(random.random)
