"""Node: an engine with what it stands on in one process: broker connection, state directory, web views, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from semel.config import Settings
from semel.errors import SemelError
from semel.plan import Plan
from semel.port import Broker, Membership
from semel.runtime.budget import available_bytes, default_budget
from semel.runtime.clock import SystemClock, SystemRandomness
from semel.runtime.code_version import code_version
from semel.runtime.failpoints import Failpoints, check_switches
from semel.runtime.settings import EngineSettings
from semel.stages.agent import crash_suspects
from semel.stages.agent.handler_faults import HandlerFaults
from semel.stages.agent.watchdog import Watchdog
from semel.state.directory import StateDirectory, first_free_instance
from semel.state.store import Store, StoreError
from semel.web.letters import LetterDesk
from semel.web.server import Route, WebServer
from semel.worker.background import blames_nobody
from semel.worker.engine import Engine
from semel.worker.heartbeat_thread import HeartbeatThread
from semel.worker.view import EngineView

log = logging.getLogger("semel.worker")


class EngineHost:
    """Owns one engine's surroundings; `run` returns after `stop` or raises why the engine cannot go on."""

    def __init__(
        self, engine: Engine, directory: StateDirectory, settings: Settings, *, pages: Sequence[Route] | None = ()
    ) -> None:
        self.engine = engine
        self.view = EngineView(engine)
        self._directory = directory
        self._settings = settings
        self._web = WebServer(self.view, settings, pages, self._letters()) if pages is not None else None
        self._watchdog = Watchdog(
            engine.runners, session_timeout_ms=settings.session_timeout_ms, max_block_ms=settings.max_block_ms,
            alive=engine.notes.alive,
        )  # fmt: skip
        self._heartbeats = self._heartbeat_thread()
        engine.scheduler.awake = self._watchdog.awake
        self._done = asyncio.Event()

    def _heartbeat_thread(self) -> HeartbeatThread:
        engine, settings = self.engine, self._settings
        client_id = f"{engine.app}-{engine.instance}-heartbeats"

        def kept(membership: Membership, asked_at: float) -> None:
            if engine.group is not None:
                engine.group.kept(membership, asked_at)

        return HeartbeatThread(
            lambda: kafka_broker(settings, client_id=client_id), engine.clock,
            to_keep=lambda: engine.group.to_keep if engine.group is not None else None, kept=kept,
            session_timeout_ms=settings.session_timeout_ms, max_block_ms=settings.max_block_ms,
        )  # fmt: skip

    def _letters(self) -> LetterDesk:
        engine, settings = self.engine, self._settings
        # Its own connection: what people ask for does not stand before what the engine does.
        client_id = f"{engine.app}-{engine.instance}-dlq"
        return LetterDesk(
            lambda: kafka_broker(settings, client_id=client_id), SystemClock(), engine.plan, engine.settings
        )

    async def run(self) -> None:
        try:
            if self._web is not None:
                await self._web.start()
                self.engine.settings.web_url = self._settings.web_url or self._web.url
            self._watchdog.start()
            self._heartbeats.start()
            await self.engine.run()
        except BaseException as exc:
            if not blames_nobody(exc):
                self.died()
            raise
        finally:
            self._watchdog.stop()
            self._heartbeats.stop()
            with contextlib.suppress(Exception):
                if self._web is not None:
                    await self._web.stop()
            try:
                self.engine.store.close()
            except StoreError as exc:
                log.warning("%s; what it lacks is restored from the changelogs", exc)
            finally:
                self.engine.notes.ended()
                self._directory.release()
                self._done.set()

    def told(self) -> None:
        """The process is told to end; from a signal handler, whether the loop runs or not."""
        self.engine.notes.told()

    def died(self) -> None:
        """The process is about to end by what nobody has told it."""
        self.engine.notes.died()

    def in_hand(self) -> list[str]:
        """What agents have in hand, for people."""
        return [str(held) for held in self.engine.notes.held()]

    async def stop(self) -> None:
        self.engine.stop()
        await self._done.wait()


def engine_settings(settings: Settings, *, adopt: bool) -> EngineSettings:
    names = (
        "commit_interval_ms", "session_timeout_ms", "transaction_timeout_ms", "rpc_timeout_ms", "commit_timeout_ms",
        "revoke_timeout_ms", "rebalance_timeout_ms", "handler_timeout_ms", "drain_timeout_ms", "carry_over_limit",
        "parked_limit", "parked_key_limit", "halt_after", "halted_timeout_ms", "replication_factor", "web_url", "lineage",
        "dead_letter_headers",
    )  # fmt: skip
    budget = settings.memory_budget_bytes or default_budget()
    log.info("memory budget: %d MiB", budget >> 20)
    if budget > (available := available_bytes()):
        log.warning(
            "memory_budget_bytes=%d is more than the %d bytes that this process may use: it will be killed before it holds so "
            "much. Leave it out (a quarter of the memory, 1 GiB at most), or set less",
            budget, available,
        )  # fmt: skip
    return EngineSettings(
        **{name: getattr(settings, name) for name in names}, adopt=adopt, memory_budget_bytes=budget,
        code_version=code_version(Path.cwd()),
    )  # fmt: skip


def own_directory(settings: Settings, app: str, instance: str | None) -> tuple[str, StateDirectory]:
    """The named instance's directory, or the first that nobody holds, or a new one. Locked."""
    # Once: user code may change the working directory.
    root = Path(settings.state_dir).absolute()
    while True:
        name = instance or first_free_instance(root, app) or f"w{secrets.token_hex(3)}"
        try:
            return name, StateDirectory(root / app / name, app, name)
        except SemelError:
            # Another worker that started at the same moment may have taken the free one.
            if instance is not None or first_free_instance(root, app) == name:
                raise


def kafka_broker(settings: Settings, *, client_id: str, compression: str | None = None) -> Broker:
    """A connection to the configured cluster, not started. ConfigError where the compression is not known, or not installed."""
    from semel.kafka import KafkaBroker, Security

    given = settings.broker_security
    security = None
    if given.protocol != "PLAINTEXT":
        security = Security(
            protocol=given.protocol,
            ca_file=str(given.ca_file) if given.ca_file else None,
            cert_file=str(given.cert_file) if given.cert_file else None,
            key_file=str(given.key_file) if given.key_file else None,
            sasl_mechanism=given.sasl_mechanism,
            username=given.username,
            password=given.password.get_secret_value() if given.password is not None else None,
        )
    return KafkaBroker(
        settings.bootstrap,
        client_id=client_id,
        rpc_timeout_ms=settings.rpc_timeout_ms,
        security=security,
        compression=compression,
    )


async def open_engine(
    plan: Plan,
    settings: Settings,
    *,
    instance: str | None,
    client_id: str | None = None,
    compression: str | None = None,
    adopt: bool = False,
    pages: Sequence[Route] | None = (),
) -> EngineHost:
    """Lock a state directory, open the store, make the engine. StateDirectoryError, InstanceTaken, ConfigError.

    `client_id`: what brokers know the connections by, else `{app}-{instance}`. `compression`: of what is written.
    `pages`: the application's own, beside the web views; None: no web server at all.
    """
    if settings.standbys:
        log.warning(
            "standbys = %d has no effect yet: no standby is kept; a takeover restores from the changelog",
            settings.standbys,
        )
    check_switches(os.environ, settings.bootstrap)
    name, directory = own_directory(settings, plan.app, instance)
    try:
        store = Store(directory.database)
    except BaseException:
        directory.release()
        raise
    broker = kafka_broker(settings, client_id=client_id or f"{plan.app}-{name}", compression=compression)
    switched = os.environ.get("SEMEL_ODD_CODE")
    odd = HandlerFaults(Path(switched)) if switched else None
    notes = crash_suspects.opened(directory.crash_notes, plan)
    engine = Engine(
        plan if odd is None else odd.around(plan),
        engine_settings(settings, adopt=adopt),
        broker,
        store,
        SystemClock(),
        SystemRandomness(),
        instance=name,
        failpoints=Failpoints.from_environment(),
        notes=notes,
    )
    if odd is not None:
        engine.each_slot(odd.inject)
    return EngineHost(engine, directory, settings, pages=pages)
