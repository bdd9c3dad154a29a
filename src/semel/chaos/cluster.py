"""The brokers of a run, each behind a proxy of its own: workers go through the proxies, the run itself goes past them."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

from semel.broker import asking
from semel.chaos.proxy import Proxy
from semel.errors import SemelError
from semel.kafka.admin import Acl, add_acls
from semel.local import ports
from semel.local.kafka import LocalKafka
from semel.local.properties import HOST, Node
from semel.runtime import looptime
from semel.runtime.clock import SystemClock

T = TypeVar("T")
ASKED_S = 60.0
# A worker that was told another has its name asks for three sessions whether that one lives, and then ends.
LINGERS_S = 60.0

# What a broker logs whose coordinator does not come up; it says NOT_COORDINATOR for good then, until it starts again.
_NOT_LOADED = re.compile(
    r"Failed to load metadata from (__\w+-\d+) .* due to java\.lang\.(.*)"
    r"|Writing records to (__\w+-\d+) failed due to: (No in-memory snapshot .*)"
)
# What it logs when it has coordinated from a part of its log: members that it knew were those of long ago.
_FORGOT = "is out of sync with the underlying log"

_PROTOCOLS = "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:SASL_PLAINTEXT"
# Who workers are to the brokers, so that rights can be taken from them; everybody else may do everything.
WORKERS = "User:workers"
_LOGIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_workers="workers";'
_RIGHTS = [Acl(resource, "*", WORKERS, "All", allows=True) for resource in ("topic", "group", "transactional id")] + [
    Acl("cluster", "kafka-cluster", WORKERS, "All", allows=True)
]


class Cluster:
    """`async with` it: brokers with nothing in them, stopped at the end. `data_dir` must be empty.

    `bootstrap` goes past the proxies, `workers_bootstrap` through them; `workers_settings`: how workers log in, as their
    environment has it. `away`: brokers that somebody here has stopped.
    """

    def __init__(self, data_dir: Path, *, brokers: int, version: str, progress: Callable[[str], None]) -> None:
        self.nodes = list(range(1, brokers + 1))
        chosen = ports.choose(2 * brokers)
        self._behind = dict(zip(self.nodes, chosen[:brokers], strict=True))
        self._before = dict(zip(self.nodes, chosen[brokers:], strict=True))
        self.kafka = LocalKafka(
            data_dir,
            version=version,
            brokers=brokers,
            properties=self._properties,
            heap_mb=512 if brokers == 1 else 320,
            progress=progress,
        )
        self.workers_bootstrap = ",".join(f"{HOST}:{port}" for port in self._before.values())
        login = {"PROTOCOL": "SASL_PLAINTEXT", "SASL_MECHANISM": "PLAIN", "USERNAME": "workers", "PASSWORD": "workers"}
        self.workers_settings = {f"SEMEL_BROKER_SECURITY__{name}": value for name, value in login.items()}
        self.proxies: list[Proxy] = []
        self.away: set[int] = set()
        # How far each broker's log has been read.
        self._read: dict[int, int] = dict.fromkeys(self.nodes, 0)
        self._stuck: dict[int, str] = {}
        # Until when what it has said from a part of its log goes on among workers: inf while it is not started again.
        self._forgot: dict[int, float] = {}
        self._stack = AsyncExitStack()

    def _properties(self, node: Node) -> Mapping[str, str]:
        """A second listener, which the broker advertises under the proxy's port."""
        own = f"BROKER://{HOST}:{node.port}"
        controller = f"CONTROLLER://{HOST}:{node.controller_port}"
        return {
            "listeners": f"{own},PROXIED://{HOST}:{self._behind[node.id]},{controller}",
            "advertised.listeners": f"{own},PROXIED://{HOST}:{self._before[node.id]}",
            "listener.security.protocol.map": _PROTOCOLS,
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.proxied.plain.sasl.jaas.config": _LOGIN,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            # What a quota is measured over, and so what a broker asks to wait: seconds, not its ten.
            "quota.window.num": "3",
            # Recorded events may be old, and what comes of them has their time: the proof is to find it all the same.
            "log.retention.ms": "-1",
            # Where the input is compacted, it is at once.
            "log.cleaner.backoff.ms": "200",
        }

    @property
    def bootstrap(self) -> str:
        return self.kafka.bootstrap

    async def __aenter__(self) -> Cluster:
        try:
            await asyncio.to_thread(self.kafka.start)
            await self.ask("the rights of the workers", lambda at: add_acls(at, _RIGHTS))
            for node in self.nodes:
                proxy = Proxy(self._before[node], self._behind[node])
                self.proxies.append(await self._stack.enter_async_context(proxy))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        await asyncio.to_thread(self.kafka.stop, 2.0)

    async def ask(self, what: str, request: Callable[[str], Awaitable[T]]) -> T:
        """Ask brokers at `bootstrap`, which come and go, until it is answered; `request` may be carried out more than once.

        SemelError after a minute of that.
        """
        return await asking.ask(
            SystemClock(),
            lambda: request(self.bootstrap),
            until=looptime.now() + ASKED_S,
            worth=lambda _: True,
            giving_up=lambda error: SemelError(
                f"{what} could not be set for {ASKED_S:g} s ({error}); its brokers' logs lie beside this run's"
            ),
        )

    # -- what is done to brokers

    async def kill(self, node: int) -> None:
        self.away.add(node)
        await asyncio.to_thread(self.kafka.kill9, node)

    async def leave(self, node: int) -> None:
        """An orderly stop: what it leads and coordinates moves to the others first."""
        self.away.add(node)
        await asyncio.to_thread(self.kafka.stop_node, node)

    async def back(self, node: int) -> None:
        self._look(node)
        self._stuck.pop(node, None)
        if node in self._forgot:
            self._forgot[node] = min(self._forgot[node], time.monotonic() + LINGERS_S)
        await asyncio.to_thread(self.kafka.restart, node)
        self.away.discard(node)

    def stuck(self) -> dict[int, str]:
        """Brokers that cannot coordinate, since this was asked last, and why."""
        self._look(*set(self.nodes) - self.away)
        stuck, self._stuck = self._stuck, {}
        return stuck

    @property
    def forgetful(self) -> bool:
        """Whether a broker has coordinated from a part of its log, since it was started last or shortly before that."""
        self._look(*set(self.nodes) - self.away)
        return any(until > time.monotonic() for until in self._forgot.values())

    def _look(self, *nodes: int) -> None:
        for node in nodes:
            with self.kafka.log_path(node).open("rb") as file:
                file.seek(self._read[node])
                new = file.read()
            whole = new.rfind(b"\n") + 1
            self._read[node] += whole
            text = new[:whole].decode(errors="replace")
            if failed := _NOT_LOADED.search(text):
                self._stuck[node] = f"{failed[1] or failed[3]}: {failed[2] or failed[4]}"
            if _FORGOT in text:
                self._forgot[node] = math.inf
