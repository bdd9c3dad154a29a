"""Named failpoints: one at each await of the protocol, for tests, the simulation and `semel chaos` to hold on to.

Unarmed they cost a look into a dictionary. Armed by `SEMEL_FAILPOINT=name[:action[:nth]]` in the environment: `kill`
(SIGKILL to this process, the default), `stop` (SIGSTOP) or `exit` (an ordinary exit with code 3) at the nth time the
point is passed.

This, `SEMEL_CLOCK_OFFSET_MS` and `SEMEL_ODD_CODE` are for tests, whose brokers run on the same machine: a worker of any
other is refused.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping

from semel.errors import ConfigError

log = logging.getLogger("semel.worker")

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


# What breaks a worker on purpose, and what it does.
SWITCHES = {
    "SEMEL_FAILPOINT": "this worker ends or stops on purpose",
    "SEMEL_CLOCK_OFFSET_MS": "this worker's clock is wrong on purpose",
    "SEMEL_ODD_CODE": "this worker's agents end oddly on purpose",
}


def check_switches(environ: Mapping[str, str], bootstrap: str) -> None:
    """Says of each switch that is set what it does. ConfigError where a broker is not on this machine."""
    for name, does in SWITCHES.items():
        if not environ.get(name):
            continue
        far = [address for address in bootstrap.split(",") if not _is_here(address)]
        if far:
            raise ConfigError(
                f"{name} is set: {does}. That is for tests with brokers on this machine (127.0.0.1, localhost), and "
                f"broker {far[0]} is not; unset {name}"
            )
        log.warning("%s=%s is set: %s. Unset it anywhere but in tests", name, environ[name], does)


def _is_here(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "localhost.localdomain")


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
