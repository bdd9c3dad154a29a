"""The HTTP server of one worker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from semel.config import Settings, default_web_url
from semel.errors import ConfigError
from semel.group.address import worker_url
from semel.web.answer import Refusal
from semel.web.auth import Guard, Names
from semel.web.budget import HEALTH_SHARE, REQUEST_S, Budget
from semel.web.cluster import Overview
from semel.web.connections import IDLE_S, Connections, listen
from semel.web.letter_routes import LetterRoutes
from semel.web.letters import LetterDesk
from semel.web.owner import Peers
from semel.web.quiet import http_log
from semel.web.rights import Rights
from semel.web.routes import Routes, refusals
from semel.web.rows import Rows
from semel.web.trust import GroupKey
from semel.web.view import WorkerView

log = logging.getLogger("semel.web")

Route = tuple[str, str, Handler]

LINE_BYTES_MAX = 64 << 10  # a URL: keys of some 20 kB, each byte percent-encoded
HEADER_BYTES_MAX = 8 << 10
BODY_BYTES_MAX = 1 << 20  # of an edited value, percent-encoded; of an application's own pages
LINGERING_S = 1.0  # for a body that nobody reads, before its connection is closed
SHUTDOWN_S = 2.0


class WebServer:
    """Serves `view` as the settings say, on the running event loop.

    `more`: an application's own pages, served beside the views; a view's path wins. `letters`: the dead letters of the pipeline,
    closed with the server. `start` raises `ConfigError` where the address cannot be listened on. `url` is what other workers
    forward to.
    """

    def __init__(
        self, view: WorkerView, settings: Settings, more: Iterable[Route] = (), letters: LetterDesk | None = None
    ) -> None:
        self._settings = settings
        token = settings.web_token.get_secret_value() if settings.web_token is not None else None
        key = GroupKey(view.app_id, token)
        rights = Rights(settings)
        guard = self._guard = Guard(token, key, lambda: self.url, rights.knows)
        self._peers = Peers(key)
        self._budget = Budget()
        self._probes = Budget(HEALTH_SHARE)
        # Accepting is paid for with the probes, so that these find a way in however many readers wait.
        self._connections = Connections(self._probes)
        self._names = Names(settings.web_bind, settings.web_url)
        self._app = web.Application(
            middlewares=[self._connections.middleware, guard.signing, refusals, self._processor, guard.middleware],
            client_max_size=BODY_BYTES_MAX,
        )
        rows, overview = Rows(view, self._peers, self._budget), Overview(view, self._peers, self._budget)
        Routes(view, rows, overview, guard, self._budget).add_to(self._app.router)
        self._letters = letters
        if letters is not None:
            LetterRoutes(letters, rights, self._budget).add_to(self._app.router)
        for method, path, handler in more:
            self._app.router.add_route(method, path, handler)
        self._runner: web.AppRunner | None = None
        self._port = settings.web_port

    @property
    def _processor(self) -> Middleware:
        """A request waits for its turn; one that was sent to another name than this worker's is refused."""

        @web.middleware
        async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
            probe = request.path in ("/livez", "/readyz")
            await (self._probes if probe else self._budget).turn(REQUEST_S)
            if not self._names.know(request.headers.get("Host")):
                raise Refusal(
                    403,
                    "this worker listens on the loopback only and is not known by that name; ask it by localhost or "
                    "127.0.0.1, or set web_url to the name it has",
                )
            return await handler(request)

        return admit

    @property
    def port(self) -> int:
        """The port listened on; with `web_port = 0` known once started."""
        return self._port

    @property
    def url(self) -> str:
        return worker_url(self._settings.web_url or default_web_url(self._settings.web_bind, self._port)) or ""

    async def start(self) -> None:
        bind, port = self._settings.web_bind, self._settings.web_port
        runner = web.AppRunner(
            self._app,
            handle_signals=False,
            access_log=None,
            shutdown_timeout=SHUTDOWN_S,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGERING_S,
            logger=http_log,
        )
        await runner.setup()
        try:
            sockets = await listen(bind, port)
        except OSError as refused:
            await runner.cleanup()
            raise ConfigError(_why_not(bind, port, refused)) from refused
        self._runner = runner
        self._port = int(sockets[0].getsockname()[1])
        assert runner.server is not None
        self._connections.serve(runner.server, sockets)
        log.info("web views on %s", self.url)

    async def stop(self) -> None:
        """Answers what is being answered, for at most two seconds. Safe to call twice, and before `start`."""
        runner, self._runner = self._runner, None
        await self._connections.close()
        if runner is not None:
            await runner.cleanup()
        self._connections.abort()
        if self._letters is not None:
            with contextlib.suppress(TimeoutError):
                # What it was at is done, or is not, as where a command is killed.
                async with asyncio.timeout(SHUTDOWN_S):
                    await self._letters.close()
        await self._peers.close()
        self._budget.close()
        self._probes.close()


def _why_not(bind: str, port: int, refused: OSError) -> str:
    where = f"web_bind = {bind!r}, web_port = {port}"
    match refused.errno:
        case errno.EADDRINUSE:
            return f"{where}: the port is taken by another process; set --web-port to a free one, or 0 for any"
        case errno.EACCES:
            return f"{where}: this user may not listen there; take a port from 1024 on"
        case _:
            return f"{where}: cannot listen there ({refused.strerror or refused}); correct web_bind"
