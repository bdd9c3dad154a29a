"""How workers of a group know each other: by what only a holder of their `web_token` can compute, never by sending it.

Anybody who may join the consumer group can claim any URL there. So before a worker is asked for anything, it is asked
for a ticket; its answer carries a MAC over its own URL and a number of the asker's choosing. Whoever passes the question on to
a true worker gets a MAC over that worker's URL, which does not fit its own. With the ticket each request is signed for
that one URL and path, and each answer is signed, too. A ticket lasts as long as `TICKET_S` says, by its giver's clock alone.

The key is derived from the token slowly, since anybody may ask for a ticket and try tokens against the MAC at home.
Without a token (a loopback bind, or `web_open`) there is no secret: everybody may read, nothing secret is sent, and the
same exchange only tells a worker of this app from any other server.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable

SCHEME = "semel"
TICKET_PATH = "/ticket"
TICKET_S = 60  # and once more: an answer in time is never too late
NONCE_CHARACTERS = 32


class GroupKey:
    """What all workers of app `app` with web_token `token` have in common."""

    def __init__(self, app: str, token: str | None) -> None:
        salt = b"semel web views of " + app.encode()
        if token is None:
            self._key = hashlib.sha256(salt).digest()
        else:
            # Some 50 ms and 16 MB, once: what a guess costs, too.
            self._key = hashlib.scrypt(token.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=32)

    def of_request(self, url: str, target: str, ticket: str, nonce: str) -> str:
        """What admits a GET of `target` (path and query) at the worker `url`."""
        return self._mac("request", url, target, ticket, nonce)

    def of_answer(self, url: str, nonce: str, status: int, body: bytes) -> str:
        """What proves that the worker `url` gave this answer to the request with `nonce`."""
        return self._mac("answer", url, nonce, str(status), hashlib.sha256(body).hexdigest())

    def _mac(self, *parts: str) -> str:
        return hmac.new(self._key, json.dumps(parts).encode(), "sha256").hexdigest()


class Tickets:
    """Tickets of this process: good now and for a while, each for any number of requests."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._secret = secrets.token_bytes(32)
        self._now = now

    def give(self) -> str:
        return self._of(int(self._now() // TICKET_S))

    def good(self, ticket: str) -> bool:
        period = int(self._now() // TICKET_S)
        return any(equal(ticket, self._of(p)) for p in (period, period - 1))

    def _of(self, period: int) -> str:
        return hmac.new(self._secret, str(period).encode(), "sha256").hexdigest()[:32]


def fresh_nonce() -> str:
    return secrets.token_hex(NONCE_CHARACTERS // 2)


def equal(given: str, expected: str) -> bool:
    """In constant time, whatever is given."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())
