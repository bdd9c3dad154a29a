"""Who may act, and whether it is they who mean it: a token that is given rights, and no page of another site behind it.

Where operators are configured (`web_operators`), they alone act, each by a token. Else whoever is on this machine does, where the
worker listens on the loopback alone, under no other name, and has no more rights at the brokers than anybody.
"""

from __future__ import annotations

import getpass
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

from aiohttp import web

from semel.config import Right, Settings, is_loopback
from semel.web.answer import Refusal
from semel.web.auth import presented

# A program says with it that no form of a page sent this: a page of another site may not set it.
ACT = "X-Semel-Act"
COOKIE = "semel-act"
CSRF = "csrf"
ALL: frozenset[str] = frozenset(get_args(Right))
NAME_CHARACTERS_MAX = 100
_COOKIE = re.compile(r"[0-9a-f]{32}")
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")


class Actor(NamedTuple):
    """`name`: as the audit has it."""

    name: str
    rights: frozenset[str]


class Rights:
    def __init__(self, settings: Settings) -> None:
        self._operators = [
            (name, operator.secret(name).encode(), frozenset[str](operator.rights))
            for name, operator in settings.web_operators.items()
        ]
        named = urlsplit(settings.web_url).hostname if settings.web_url else None
        self._open_here = (
            not self._operators
            and is_loopback(settings.web_bind)
            and (named is None or is_loopback(named))
            and settings.web_token is None
            and settings.broker_security.protocol == "PLAINTEXT"
        )
        self._own_url = urlsplit(settings.web_url).netloc.lower() if settings.web_url else ""
        self._secret = secrets.token_bytes(32)

    @property
    def by_name(self) -> bool:
        """Whether who acts says who they are, for nothing proves it."""
        return self._open_here

    @property
    def closed(self) -> str:
        """Why nobody may act here; empty where somebody may."""
        if self._operators or self._open_here:
            return ""
        return (
            "nobody may act on dead letters here: name who may in [web_operators.NAME], with a token and rights. Without that, "
            "only who is on this machine may, where bind and web_url are the loopback, without web_token, and at brokers that "
            "ask for no credentials. `semel dlq` does it meanwhile"
        )

    def knows(self, authorization: str | None) -> bool:
        """Whether it is an operator, who may read, too."""
        return self._operator(authorization) is not None

    def _operator(self, authorization: str | None) -> Actor | None:
        given = presented(authorization)
        if given is None:
            return None
        operator = None
        for name, token, rights in self._operators:
            if hmac.compare_digest(given, token):
                operator = Actor(name, rights)
        return operator

    def actor(self, request: web.Request, claimed_name: str, right: str) -> Actor:
        """Who acts, and may. Refusal 401, 403."""
        if self.closed:
            raise Refusal(403, self.closed)
        if self._open_here:
            actor = self._on_this_machine(request, claimed_name)
        else:
            operator = self._operator(request.headers.get("Authorization"))
            if operator is None:
                raise Refusal(401, "to act on dead letters give the token of an operator: Authorization: Bearer TOKEN")
            actor = operator
        if right not in actor.rights:
            raise Refusal(403, f"{actor.name} has no right to {right}; give it in web_operators")
        return actor

    @staticmethod
    def _on_this_machine(request: web.Request, claimed_name: str) -> Actor:
        if not is_loopback(request.remote or "") or any(name in request.headers for name in _FORWARDED):
            raise Refusal(403, "only who is on this machine may act without being named; set [web_operators.NAME]")
        name = claimed_name.strip() or local_user()
        if len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
            raise Refusal(400, f"`as` must be a name of {NAME_CHARACTERS_MAX} characters at most")
        return Actor(f"{name} (not proven)", ALL)

    # -- whether they mean it

    def cookie_of(self, request: web.Request) -> tuple[str, bool]:
        """What this browser is known by, and whether that is new to it."""
        known = request.cookies.get(COOKIE, "")
        return (known, False) if _COOKIE.fullmatch(known) else (secrets.token_hex(16), True)

    def form_token(self, cookie: str) -> str:
        """What a form of ours has in it, for the browser with that cookie."""
        return hmac.new(self._secret, cookie.encode(), "sha256").hexdigest()

    def check_meant(self, request: web.Request, form: Mapping[str, Any] | None) -> None:
        """Refusal 403 where a page of another site may be behind it. `form`: the fields, None for what is no form's."""
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        origin = request.headers.get("Origin")
        if site not in ("same-origin", "none") or (
            origin is not None and not self._is_own(origin, request.headers.get("Host"))
        ):
            raise Refusal(403, "a page of another site sent this; act from the worker's own pages")
        if form is None:
            if ACT not in request.headers:
                raise Refusal(403, f"a program that acts says so by the header {ACT}: 1")
            return
        cookie, given = request.cookies.get(COOKIE, ""), str(form.get(CSRF, ""))
        if not _COOKIE.fullmatch(cookie) or not hmac.compare_digest(given.encode(), self.form_token(cookie).encode()):
            raise Refusal(
                403,
                "this form is not of a page of this worker since it started; load the page again. A program sends JSON with "
                "Content-Type: application/json",
            )

    def _is_own(self, origin: str, host: str | None) -> bool:
        netloc = urlsplit(origin).netloc.lower()
        return bool(netloc) and netloc in {(host or "").lower(), self._own_url} - {""}


def local_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
