"""semel.App: a faust.App whose data plane is the engine.

Everything that reads, writes or commits is replaced; the command line, agents, topics, tables as declarations, timers,
tasks, web host and sensors are Faust's. Inside, Faust believes in at_least_once, so that its own transactions never
appear; the promise is the engine's, whatever `processing_guarantee=` says.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false, reportMissingTypeStubs=false
# pyright: reportMissingTypeArgument=false, reportIncompatibleVariableOverride=false
from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import wraps
from typing import Any, NoReturn

import faust
from aiohttp import web
from faust.app.base import BootStrategy

from semel.config import Settings
from semel.errors import DeclarationError, StaleIncarnation, StateNotReady
from semel.faust_.agent import Agent
from semel.faust_.arguments import PAGE, check_signals
from semel.faust_.arguments import check as check_arguments
from semel.faust_.settings import (
    FORCED,
    as_semels,
    check,
    check_names,
    client_id_of,
    not_in_memory,
    pristine,
    say_moot,
    say_unknown,
    start_of,
)
from semel.faust_.stream import Stream
from semel.faust_.table import Table, TableManager
from semel.faust_.topic import Topic
from semel.faust_.transport import SCHEME
from semel.faust_.worker import AppWorker
from semel.plan import Plan, Start
from semel.port import RpcError, RpcLost, TopicSpec
from semel.state.directory import unusable
from semel.state.event_context import event_number
from semel.state.task import TaskState
from semel.topic import Topic as SemelTopic
from semel.worker.engine import Engine
from semel.worker.engine_host import EngineHost, open_engine

log = logging.getLogger("semel.app")

_OURS = frozenset(Settings.model_fields) - {"broker", "faust"}


class Boot(BootStrategy):
    """Faust's order of services, without its web server: pages are served beside semel's views, on one port."""

    def web_server(self) -> Iterable[Any]:
        return [self.app.cache] if self._should_enable_web() else []


class App(faust.App):
    """Used as `faust.App` is; existing code runs with the import changed. Also takes semel's settings as keywords
    (`session_timeout_ms=`, `commit_interval_ms=`, ...); `datadir=` is the state directory.

    A consumer's offsets, its tables' rows and what it sends commit together or not at all. ConfigError for settings that
    contradict each other; DeclarationError for what the engine does not run.
    """

    BootStrategy = Boot

    def __init__(
        self, id: str, *, settings: Settings | None = None, start: Start | None = None, **options: Any
    ) -> None:
        given = {name: options.pop(name) for name in list(options) if name in _OURS}
        if "datadir" in options:
            given.setdefault("state_dir", options["datadir"])
        broker = options.pop("broker", None) or options.pop("url", None)
        if broker:
            given["broker"] = _bootstrap(broker)
        not_in_memory("", options.get("store"))
        self._given = given
        self._base = settings or Settings.load(**given)
        # Whether semel's own file, variable or option says where the broker is: the keyword alone is below BROKER_URL.
        own = Settings.load() if broker and settings is None else self._base
        self._broker_said = "broker" in own.model_fields_set
        self.semel_settings = self._base
        self._id = id
        self._start: Start | None = start
        self.instance: str | None = options.pop("consumer_group_instance_id", None) or None
        self.adopt = False
        self.host: EngineHost | None = None
        self._engine_made = asyncio.Event()
        self.engine_failure: BaseException | None = None
        self.engine_failed = asyncio.Event()
        # True where somebody else (`semel worker`) watches `engine_failed` and says what happened.
        self.supervised = False
        self._stopping_engine = False
        # Tasks and services of the app have started.
        self.may_begin = asyncio.Event()
        self._options = options
        say_unknown(id, options)
        # Nobody can be connected to its signals yet: they are sent when it is configured for good.
        self._declaring, self._told = True, False
        super().__init__(id, **self._as_fausts(self._base))
        _ = self.conf  # what is refused is refused where it is declared
        self._declaring = False

    # -- its settings

    def _as_fausts(self, settings: Settings) -> dict[str, Any]:
        """What Faust's own settings are made of."""
        check_names(settings.faust)
        # 0 means any free port to semel's own views; Faust, which serves none of them, does not take it.
        port = settings.web_port or Settings.model_fields["web_port"].default
        return {
            "Agent": Agent,
            "Stream": Stream,
            "Table": Table,
            "TableManager": TableManager,
            "Topic": Topic,
            "datadir": str(settings.state_dir / self._id),
            "web_port": port,
            **settings.faust,
            **self._options,
            "broker": f"{SCHEME}://{settings.bootstrap}",
        }

    def _load_settings(self, *, silent: bool = False) -> Any:
        """As Faust does; what semel refuses is refused, and Faust's own data plane stays out, whoever asks for it."""
        conf: Any = super()._load_settings(silent=silent)
        not_in_memory("", None if conf.store == pristine().store else conf.store)
        if any(url.scheme != SCHEME for url in conf.broker):
            # Faust's variable BROKER_URL, or a configuration module, says where the broker is.
            if not self._broker_said:
                self._base = self._base.replace(broker=_bootstrap(conf.broker))
            object.__setattr__(conf, "broker", f"{SCHEME}://{self._base.bootstrap}")
        check(conf)
        for name, value in FORCED.items():
            object.__setattr__(conf, name, value)
        self._declared_web = (int(conf.web_port), str(conf.web_bind), str(conf.web_host))
        self.semel_settings = as_semels(conf, self._base)
        conf._accessed.clear()  # Faust warns whoever sets what was read before, and only semel has
        return conf

    def _configure(self, *, silent: bool = False) -> None:
        if self._declaring:
            self._conf, self.configured = self._load_settings(silent=silent), True
        else:
            self._configure_and_tell(silent=silent)

    def _configure_and_tell(self, *, silent: bool = False) -> None:
        self._told = self._declaring = True
        try:
            self.on_before_configured.send()  # whoever gives a configuration module here is not told again of it
        finally:
            self._declaring = False
        if self._conf is None:
            self._conf, self.configured = self._load_settings(silent=silent), True
        self.on_configured.send(self._conf)
        self.on_after_configured.send()

    def finalize(self) -> None:
        """As Faust's, which calls it for the first topic, too. Who connected to the signals of configuration hears them now."""
        if not self._told:
            self._configure_and_tell()
        super().finalize()

    def use(self, settings: Settings) -> None:
        """`settings`, as a command loaded them, above what the app was declared with. ConfigError."""
        self._base = self._base.below(settings)
        self._broker_said = self._broker_said or "broker" in settings.model_fields_set
        self._default_options = (self._id, self._as_fausts(self._base))
        self._conf = None
        _ = self.conf

    # -- what runs

    @property
    def engine(self) -> Engine | None:
        return self.host.engine if self.host is not None else None

    def as_supervised(self, *, instance: str | None, adopt: bool) -> AppWorker:
        """The app as `semel worker` runs it."""
        return AppWorker(self, instance=instance, adopt=adopt)

    async def restored(self) -> None:
        """Until the engine has restored its first assignment."""
        await self._engine_made.wait()
        assert self.engine is not None
        await self.engine.until_restored()

    def failed(self, exc: BaseException) -> None:
        """The engine has ended with that."""
        self.engine_failure = exc
        self.engine_failed.set()

    def plan(self) -> Plan:
        """What the engine is to run: every agent on a topic, every table, every topic that may be sent to."""
        agents = [a for a in self.agents.values() if isinstance(a, Agent) and a.on_topic]
        check(self.conf)
        check_signals(self)
        plan = Plan(self.conf.id, start=self._start or start_of(self.conf) or "earliest")
        plan.agents = [agent.plan() for agent in agents]
        plan.tables = [table.plan() for table in self.tables.values() if isinstance(table, Table)]
        internal = {
            name for a in agents for name in getattr(a.channel, "topics", ()) if getattr(a.channel, "internal", False)
        }
        plan.internal_sources = internal
        sources = plan.sources
        for agent in agents:
            for sink in getattr(agent, "_sinks", ()):
                if isinstance(sink, Topic):
                    plan.outputs.append(sink.as_output())
        plan.outputs += [_opaque(name) for name in sources if name not in {t.name for t in plan.outputs}]
        return plan

    def is_leader(self) -> bool:
        """The worker that runs task 0: there is at most one, and the group fences it."""
        task = self.engine.tasks.get(0) if self.engine is not None else None
        return task is not None and task.state is TaskState.RUNNING

    def add_future(self, coro: Any) -> Any:
        """As Faust does. Work of an event that is undone ends by itself, and not the worker: it is started again with it."""
        return super().add_future(_of_its_event(coro) if event_number.get() else coro)

    def timer(self, *args: Any, **kwargs: Any) -> Any:
        """As Faust's. While state is restored it waits: what it reads is whole."""
        return self._whole(super().timer(*args, **kwargs))

    def crontab(self, *args: Any, **kwargs: Any) -> Any:
        """As `timer`."""
        return self._whole(super().crontab(*args, **kwargs))

    def _whole(self, declare: Any) -> Any:
        def declared(fun: Any) -> Any:
            @wraps(fun)
            async def run(*args: Any) -> Any:
                if await self.tables.wait_until_recovery_completed():
                    return
                try:
                    await fun(*args)
                except StateNotReady as exc:
                    log.info("%s: %s; it runs again when it is due", fun.__qualname__, exc)

            return declare(run)

        return declared

    async def on_started_init_extra_services(self) -> None:
        """Tasks and services have started: from now on agents get events."""
        await super().on_started_init_extra_services()
        self._check_partitions()
        self.may_begin.set()

    def _check_partitions(self) -> None:
        engine = self.engine
        there = max(engine.assignment.partitions.values(), default=0) if engine is not None else 0
        for table in self.tables.values():
            if engine is not None and isinstance(table, Table) and there and table.said_partitions not in (None, there):
                engine.fail(
                    DeclarationError(
                        f"table {table.name!r}: partitions={table.said_partitions}, and the sources have {there}: a row lives "
                        "where its event is; leave partitions= out"
                    )
                )

    def page(self, path: str, **given: Any) -> Any:
        check_arguments(PAGE, f"page {path!r}", given)
        return super().page(path, **given)

    def table_route(self, table: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise DeclarationError(
            f"table_route of table {table.name!r} does not run on semel: any worker answers GET /tables/{table.name}/{{key}} "
            "for any key; let the page ask that"
        )

    def topic_route(self, topic: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise DeclarationError(
            f"topic_route of topic {topic!s} does not run on semel: let the page send to the topic, from any worker"
        )

    def LiveCheck(self, **kwargs: Any) -> NoReturn:
        raise DeclarationError("LiveCheck does not run on semel; see `semel prove`")

    def SetTable(self, name: str, *args: Any, **kwargs: Any) -> NoReturn:
        raise DeclarationError(f"table {name!r}: set tables do not run on semel yet; use app.Table(..., default=list)")

    def GlobalTable(self, name: str, *args: Any, **kwargs: Any) -> NoReturn:
        raise DeclarationError(
            f"table {name!r}: global tables do not run on semel yet; ask GET /tables/{name} of any worker"
        )

    SetGlobalTable = GlobalTable

    # -- its life, as the consumer drives it

    async def run_engine(self) -> None:
        """Build the engine from what is declared, bind its runners to the agents, and run it. Raises why it cannot go on."""
        plan = self.plan()
        settings = self._settings_at_start()
        say_moot(self.conf)
        self.host = await open_engine(
            plan,
            settings,
            instance=self.instance,
            client_id=client_id_of(self.conf),
            compression=self.conf.producer_compression_type,
            adopt=self.adopt,
            pages=own_pages(self) if self._web_wanted else None,
        )
        engine = self.host.engine
        # An app's timers, pages and tasks run here, too.
        engine.scheduler.only_agents = False
        self._engine_made.set()
        for runner in engine.runners:
            for agent in self.agents.values():
                if isinstance(agent, Agent) and agent.on_topic and agent.name == runner.plan.name:
                    agent.bind(runner)
        if self._stopping_engine:
            engine.stop()
        try:
            await self.host.run()
        finally:
            if not self._stopping_engine and self.engine_failure is None:
                log.debug("the engine ended")

    def _settings_at_start(self) -> Settings:
        """What `app.conf` says by now, and `faust worker`, which says so later than everything else."""
        conf: Any = self.conf
        settings = as_semels(conf, self._base)
        port, bind, host = self._declared_web
        later: dict[str, Any] = {}
        if int(conf.web_port) != port:
            later["web_port"] = int(conf.web_port)
        if str(conf.web_bind) != bind:
            later["web_bind"] = str(conf.web_bind)
        if str(conf.web_host) != host:
            later["web_url"] = f"http://{conf.web_host}:{int(conf.web_port)}"
        self.semel_settings = settings.replace(**later) if later else settings
        return self.semel_settings

    async def stop_engine(self) -> None:
        """Drain, commit and stop, within drain_timeout_ms."""
        self._stopping_engine = True
        if self.host is not None:
            await self.host.stop()

    def _create_directories(self) -> None:
        # Faust makes the last level only, and the state directory is configured by itself.
        where = self.conf.datadir
        try:
            where.mkdir(parents=True, exist_ok=True)
            super()._create_directories()
        except OSError as exc:
            raise unusable(where, exc) from exc

    async def on_stop(self) -> None:
        await self.stop_engine()
        await super().on_stop()

    @property
    def _web_wanted(self) -> bool:
        return bool(self.conf.web_enabled)

    async def create_topic(self, name: str, partitions: int, replication: int, config: Mapping[str, Any]) -> None:
        if self.engine is None:
            await self.wait_for_stopped(self._engine_made.wait())
        if self.engine is None:
            return
        try:
            spec = TopicSpec(name, partitions, replication or 1, {k: str(v) for k, v in config.items()})
            await self.engine.broker.create_topics([spec])
        except (RpcError, RpcLost) as exc:
            log.warning("topic %s could not be created: %s", name, exc)


async def _of_its_event(coro: Any) -> Any:
    try:
        return await coro
    except StaleIncarnation as exc:
        log.info("a future ends without effect: %s", exc)
        return None


def _opaque(name: str) -> SemelTopic:
    return SemelTopic(name, key=bytes, value=bytes)


def _bootstrap(broker: Any) -> str:
    from semel.config import parse_broker

    if isinstance(broker, (list, tuple)):
        return ",".join(parse_broker(str(part).replace("aiokafka://", "kafka://")) for part in broker)  # pyright: ignore[reportUnknownArgumentType]
    return parse_broker(str(broker).replace("aiokafka://", "kafka://"))


def own_pages(app: Any) -> list[tuple[str, str, Any]]:
    """The pages that the app's `@app.page` and blueprints declare, as routes of aiohttp."""
    app.web.init_server()
    pages: list[tuple[str, str, Any]] = []
    for route in app.web.web_app.router.routes():
        info = route.resource.get_info() if route.resource is not None else {}
        path = info.get("path") or info.get("formatter")
        if path is not None and (route.method, path) != ("HEAD", path):
            pages.append((route.method, path, _when_ready(route.handler)))
    return pages


def _when_ready(handler: Any) -> Any:
    """A page that reads what is not whole yet answers as the views do."""

    @wraps(handler)
    async def answer(request: Any) -> Any:
        try:
            return await handler(request)
        except StateNotReady as exc:
            return web.json_response({"error": str(exc)}, status=503, headers={"Retry-After": "1"})

    return answer


__all__ = ["App"]
