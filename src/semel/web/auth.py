"""Who may read: everybody on loopback or where `web_open` says so, else holders of `web_token`.

The token comes as `Authorization: Bearer TOKEN`, or as the password of Basic, which browsers can ask for.
Liveness and readiness answer without it, for orchestrators that send no header, and then without details.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from semel.web.answer import Refusal

OPEN_PATHS = frozenset({"/livez", "/readyz"})
CHALLENGE = 'Bearer realm="semel", Basic realm="semel", charset="UTF-8"'


def presented(authorization: str | None) -> bytes | None:
    """The token in an Authorization header."""
    scheme, _, credentials = (authorization or "").strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip().encode("utf-8", "surrogateescape")
        case "basic":
            try:
                return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return None
        case _:
            return None


class Guard:
    """Knows `token`; None lets everybody in."""

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else token.encode()

    def admits(self, request: web.Request) -> bool:
        if self._expected is None:
            return True
        given = presented(request.headers.get("Authorization"))
        return given is not None and hmac.compare_digest(given, self._expected)

    @property
    def middleware(self) -> Middleware:
        """Refuses, with 401, what is not admitted."""

        @web.middleware
        async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path not in OPEN_PATHS and not self.admits(request):
                raise Refusal(401, "this worker asks for its web_token: Authorization: Bearer TOKEN")
            return await handler(request)

        return refuse
