"""Who may read: everybody on loopback or where `web_open` says so, else holders of `web_token` and the group's workers.

The token comes as `Authorization: Bearer TOKEN`, or as the password of Basic, which browsers can ask for; a worker
signs what it asks (`semel.web.trust`). Liveness and readiness answer without it, for orchestrators that send no header,
and then without details.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from semel.config import is_loopback
from semel.web.answer import Refusal
from semel.web.trust import NONCE_CHARACTERS, SCHEME, TICKET_PATH, GroupKey, Tickets, equal

HOP = "X-Semel-Hop"
PROOF = "X-Semel-Proof"
OPEN_PATHS = frozenset({"/livez", "/readyz", TICKET_PATH})
# Basic first: Chromium asks nobody for a password where another scheme stands before it.
CHALLENGE = 'Basic realm="semel", charset="UTF-8", Bearer realm="semel"'


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


class Names:
    """The names a server answers to. On the loopback they are its own, so that no page of another site can read it under
    a name of that site's that leads here; elsewhere any will do."""

    def __init__(self, bind: str, web_url: str) -> None:
        named = urlsplit(web_url).hostname if web_url else None
        own = {"localhost", "127.0.0.1", "::1", bind.lower(), *([named] if named else [])}
        self._own = own if is_loopback(bind) else None

    def know(self, host: str | None) -> bool:
        """`host`: the header. Without one it is no browser."""
        if self._own is None or not host:
            return True
        try:
            name = urlsplit(f"//{host.strip()}").hostname or ""
        except ValueError:
            return False
        return name.removesuffix(".") in self._own


class Guard:
    """Knows `token`; None lets everybody in. `key` and `url` (this worker's own) are what other workers prove. `knows`: whom else
    it lets in, by their Authorization."""

    def __init__(
        self,
        token: str | None,
        key: GroupKey,
        url: Callable[[], str],
        knows: Callable[[str | None], bool] = lambda _: False,
    ) -> None:
        self._knows = knows
        self._expected = None if token is None else token.encode()
        self._key = key
        self._url = url
        self.tickets = Tickets()

    def admits(self, request: web.Request) -> bool:
        if self._expected is None:
            return True
        authorization = request.headers.get("Authorization")
        given = presented(authorization)
        if given is not None:
            return hmac.compare_digest(given, self._expected) or self._knows(authorization)
        return self._is_worker(request, authorization or "")

    def _is_worker(self, request: web.Request, authorization: str) -> bool:
        scheme, _, credentials = authorization.partition(" ")
        ticket, _, mac = credentials.partition(":")
        if scheme.lower() != SCHEME or not self.tickets.good(ticket):
            return False
        nonce = request.headers.get(HOP, "")
        return equal(mac, self._key.of_request(self._url(), request.raw_path, ticket, nonce))

    @property
    def middleware(self) -> Middleware:
        """Refuses, with 401, what is not admitted."""

        @web.middleware
        async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path not in OPEN_PATHS and not self.admits(request):
                raise Refusal(401, "this worker asks for its web_token: Authorization: Bearer TOKEN")
            return await handler(request)

        return refuse

    @property
    def signing(self) -> Middleware:
        """Proves to a worker that asked that the answer is of this one."""

        @web.middleware
        async def sign(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            nonce = request.headers.get(HOP, "")
            if len(nonce) == NONCE_CHARACTERS and isinstance(response, web.Response):
                body = response.body
                if isinstance(body, bytes) and (request.path in OPEN_PATHS or self.admits(request)):
                    response.headers[PROOF] = self._key.of_answer(self._url(), nonce, response.status, body)
            return response

        return sign
