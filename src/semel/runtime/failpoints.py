"""Named failpoints: one at each await of the protocol, for tests, the simulation and `semel chaos` to hold on to.

Unarmed they cost a look into a dictionary. Armed by `SEMEL_FAILPOINT=name[:action[:nth]]` in the environment: `kill`
(SIGKILL to this process, the default), `stop` (SIGSTOP) or `exit` (an ordinary exit with code 3) at the nth time the
point is passed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable

from semel.errors import ConfigError

NAMES = (
    "begin.before_init",
    "begin.after_init",
    "barrier.before_seal",
    "barrier.after_seal",
    "commit.before_partitions",
    "commit.after_partitions",
    "commit.after_offsets_added",
    "commit.after_produce",
    "commit.after_offsets",
    "commit.after_end",
    "commit.before_store",
    "commit.after_store",
    "abort.before_end",
    "revoke.begin",
    "revoke.end",
    "assign.begin",
    "restore.after_offsets",
    "restore.after_ends",
    "restore.chunk",
    "restore.end",
    "group.before_join",
    "group.after_join",
    "group.after_sync",
)


class Failpoints:
    """`hooks`: name -> what to await there (tests, simulation)."""

    def __init__(self, armed: str | None = None) -> None:
        self.hooks: dict[str, Callable[[], Awaitable[None]]] = {}
        if armed:
            self._arm(*armed.split(":", 2))

    @classmethod
    def from_environment(cls) -> Failpoints:
        return cls(os.environ.get("SEMEL_FAILPOINT"))

    def _arm(self, name: str, action: str = "kill", nth: str = "1") -> None:
        if name not in NAMES or action not in ("kill", "stop", "exit") or not nth.isdecimal() or int(nth) < 1:
            raise ConfigError(
                f"SEMEL_FAILPOINT says {name}:{action}:{nth}; points are {', '.join(NAMES)}; actions kill, stop, exit; "
                "then the number of the time, from 1"
            )
        left = int(nth)

        async def hit() -> None:
            nonlocal left
            left -= 1
            if left:
                return
            if action == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)

        self.hooks[name] = hit

    async def __call__(self, name: str) -> None:
        hook = self.hooks.get(name)
        if hook is not None:
            await hook()
