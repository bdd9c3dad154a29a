"""The HTTP server of one worker."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler

from semel.config import Settings, default_web_url
from semel.errors import ConfigError
from semel.web.auth import Guard
from semel.web.cluster import Overview
from semel.web.owner import Peers
from semel.web.routes import Routes, refusals
from semel.web.rows import Rows
from semel.web.view import WorkerView

log = logging.getLogger("semel.web")

Route = tuple[str, str, Handler]

LINE_BYTES_MAX = 64 << 10  # a URL: keys of some 20 kB, each byte percent-encoded
HEADER_BYTES_MAX = 8 << 10
BODY_BYTES_MAX = 1 << 20  # views read no body; an application's own pages may
SHUTDOWN_S = 2.0


class WebServer:
    """Serves `view` as the settings say, on the running event loop.

    `more`: an application's own pages, served beside the views; a view's path wins. `start` raises `ConfigError` where
    the address cannot be listened on. `url` is what other workers forward to.
    """

    def __init__(self, view: WorkerView, settings: Settings, more: Iterable[Route] = ()) -> None:
        self._settings = settings
        self._peers = Peers()
        token = settings.web_token.get_secret_value() if settings.web_token is not None else None
        guard = Guard(token)
        self._app = web.Application(middlewares=[refusals, guard.middleware], client_max_size=BODY_BYTES_MAX)
        Routes(view, Rows(view, self._peers), Overview(view, self._peers), guard).add_to(self._app.router)
        for method, path, handler in more:
            self._app.router.add_route(method, path, handler)
        self._runner: web.AppRunner | None = None
        self._port = settings.web_port

    @property
    def port(self) -> int:
        """The port listened on; with `web_port = 0` known once started."""
        return self._port

    @property
    def url(self) -> str:
        return self._settings.web_url or default_web_url(self._settings.web_bind, self._port)

    async def start(self) -> None:
        bind, port = self._settings.web_bind, self._settings.web_port
        runner = web.AppRunner(
            self._app,
            handle_signals=False,
            access_log=None,
            shutdown_timeout=SHUTDOWN_S,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, bind, port).start()
        except OSError as refused:
            await runner.cleanup()
            raise ConfigError(_why_not(bind, port, refused)) from refused
        self._runner = runner
        self._port = int(runner.addresses[0][1])
        log.info("web views on %s", self.url)

    async def stop(self) -> None:
        """Answers what is being answered, for at most two seconds. Safe to call twice, and before `start`."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        await self._peers.close()


def _why_not(bind: str, port: int, refused: OSError) -> str:
    where = f"web_bind = {bind!r}, web_port = {port}"
    match refused.errno:
        case errno.EADDRINUSE:
            return f"{where}: the port is taken by another process; set --web-port to a free one, or 0 for any"
        case errno.EACCES:
            return f"{where}: this user may not listen there; take a port from 1024 on"
        case _:
            return f"{where}: cannot listen there ({refused.strerror or refused}); correct web_bind"
