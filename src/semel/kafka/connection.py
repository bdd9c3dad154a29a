"""Sockets to one broker: opened when needed, closed when an answer stays away."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import asyncio
import ssl
from typing import Any, NamedTuple

from aiokafka import conn
from aiokafka.errors import (
    BrokerResponseError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import SaslAuthenticateRequest

from semel.codes import Code, describe
from semel.kafka import apis
from semel.kafka.wire import Answer, Call, Versions
from semel.port import RpcError, RpcLost
from semel.runtime import looptime
from semel.throttles import Throttles

_MAX_IDLE_MS = 540_000  # below the broker's connections.max.idle.ms of 10 minutes, so that we hang up, not it
_UNBOUNDED_MS = 86_400_000  # aiokafka's own timer; ours is the deadline of each call

# Of the time for which a broker takes a login (KIP-368): past all of it, it cuts the connection.
_LOGIN_SHARE = 0.85

# aiokafka's connection has no types: here it becomes one.
_Base: Any = conn.AIOKafkaConnection


class _Socket(_Base):
    """`login_ends`: the loop's time after which the broker wants another login; None: never."""

    login_ends: float | None = None

    def send(self, request: Any, expect_response: bool = True) -> Any:
        reply = _Base.send(self, request, expect_response)
        return self._logged_in(reply) if isinstance(request, SaslAuthenticateRequest) else reply

    async def _logged_in(self, reply: Any) -> Any:
        answer = await reply
        lifetime_ms = getattr(answer, "session_lifetime_ms", 0)
        if lifetime_ms > 0:
            self.login_ends = asyncio.get_running_loop().time() + lifetime_ms / 1000 * _LOGIN_SHARE
        return answer


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connections:
    """The open connections to one address. Each carries one request at a time.

    A broker answers the requests of a connection in order, so that a long poll would hold up whatever came
    behind it: a call takes an idle connection, or opens one. One that got no answer, be it lost, late or
    cancelled, is closed: a late answer cannot arrive. Nothing is sent twice. One whose login ends soon is closed
    once it is idle, and the next logs in anew.

    A request waits for as long as the broker said in its last answer to one of its kind (KIP-219); the connection
    that brought that answer is not used until then.
    """

    def __init__(
        self,
        address: Address,
        client_id: str,
        options: dict[str, Any],
        *,
        throttles: Throttles,
        closed: bool = False,
    ) -> None:
        self.address = address
        self._client_id = client_id
        self._options = options
        self._throttles = throttles
        self._idle: list[Any] = []
        self._muted: list[tuple[float, Any]] = []
        self._busy: set[Any] = set()
        self._closed = closed

    @property
    def any_open(self) -> bool:
        return any(socket.connected() for socket in (*self._idle, *self._busy, *(s for _, s in self._muted)))

    async def ask(self, call: Call, deadline: float) -> Answer:
        """Send once and wait for the answer until `deadline` (loop time). RpcLost; RpcError from logging in.

        What the broker asks to wait before comes on top.
        """
        name, loop = call.api.name, asyncio.get_running_loop()
        while (wait := self._throttles.wait_s(name, self.address)) > 0:
            await asyncio.sleep(wait)
            deadline += wait
        socket = self._take_idle()
        if socket is None:
            try:
                async with looptime.timeout_at(deadline):
                    socket = await self._open(name)
            except TimeoutError:
                raise RpcLost(name, f"{self.address}: no connection in time", sent=False) from None
        self._busy.add(socket)
        sent = False
        try:
            reply = socket.send(call)
            sent = True
            async with looptime.timeout_at(deadline):
                answer = await reply
        except TimeoutError:
            self._hang_up(socket)
            # The idle ones may be as dead as this one; each would cost its call the whole bound.
            self._hang_up(*self._idle)
            raise RpcLost(name, f"{self.address} did not answer in time") from None
        except (KafkaError, OSError) as error:
            self._hang_up(socket)
            raise RpcLost(name, f"{self.address}: {error}", sent=sent) from error
        except BaseException:
            self._hang_up(socket)
            raise
        finally:
            self._busy.discard(socket)
        throttle_ms = call.api.throttle_ms(answer)
        if throttle_ms > 0:
            self._throttles.heard(name, self.address, throttle_ms)
            self._muted.append((loop.time() + throttle_ms / 1000, socket))
        else:
            self._idle.append(socket)
        return answer

    async def close(self) -> None:
        self._closed = True
        closing = self._hang_up(*self._idle, *self._busy, *(socket for _, socket in self._muted))
        if closing:
            await asyncio.wait(closing, timeout=1)

    def _take_idle(self) -> Any:
        now = asyncio.get_running_loop().time()
        if self._muted:
            self._idle += [socket for until, socket in self._muted if until <= now]
            self._muted = [(until, socket) for until, socket in self._muted if until > now]
        while self._idle:
            socket = self._idle.pop()
            if socket.connected() and (socket.login_ends is None or now < socket.login_ends):
                return socket
            self._hang_up(socket)
        return None

    async def _open(self, api: str) -> Any:
        if self._closed:
            raise RpcLost(api, "the client is closed", sent=False)
        try:
            socket = _Socket(
                self.address.host,
                self.address.port,
                client_id=self._client_id,
                request_timeout_ms=_UNBOUNDED_MS,
                max_idle_ms=_MAX_IDLE_MS,
                **self._options,
            )
            await socket.connect()
        except (SaslAuthenticationFailed, UnsupportedSaslMechanismError) as error:
            raise _refused_login(error, self._options) from error
        except TimeoutError:
            raise
        except (KafkaError, OSError, AssertionError, ValueError) as error:
            # The last two are how aiokafka's SASL exchanges fail on an answer they do not understand.
            raise RpcLost(api, f"{self.address}: {_why_closed(error, self._options)}", sent=False) from error
        try:
            if self._closed:
                raise RpcLost(api, "the client is closed", sent=False)
            check_versions(self.address, socket._versions)
        except (RpcError, RpcLost):
            socket.close()
            raise
        return socket

    def _hang_up(self, *sockets: Any) -> list[asyncio.Future[None]]:
        self._idle = [socket for socket in self._idle if socket not in sockets]
        closing = [socket.close() for socket in sockets]
        return [future for future in closing if future is not None]


def _refused_login(error: BrokerResponseError, options: dict[str, Any]) -> RpcError:
    reason = str(error).partition(f"{type(error).__name__}: ")[2] or str(error)
    way = "correct username and password in [broker_security], or give this user a password there"
    if error.errno == Code.UNSUPPORTED_SASL_MECHANISM:
        way = "set broker_security.sasl_mechanism to one that the broker has"
    detail = f"{reason}; {way} (the login was by {options.get('sasl_mechanism')})"
    return RpcError("SaslAuthenticate", error.errno, describe(error.errno, detail))


def _why_closed(error: Exception, options: dict[str, Any]) -> str:
    """Why there is no connection, with the setting that may be wrong where the other side spoke another language."""
    protocol = str(options.get("security_protocol", "PLAINTEXT"))
    reason = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the broker's certificate is not trusted ({getattr(error, 'verify_message', reason)}); set "
            "broker_security.ca_file to the authority that signed it, and broker to a name that it is for"
        )
    if isinstance(error, IllegalSaslStateError):
        return f"this listener takes no login, and broker_security.protocol is {protocol}; set the one that it has"
    hung_up = isinstance(error, ConnectionResetError | ConnectionAbortedError | ssl.SSLError | KafkaConnectionError)
    if hung_up and protocol.endswith("SSL"):
        return (
            f"no TLS was agreed on ({reason}); broker_security.protocol is {protocol}: this may be a listener without TLS, or "
            "one that wants a client's certificate (broker_security.cert_file)"
        )
    if hung_up:
        return (
            f"it hung up before it answered ({reason}); broker_security.protocol is {protocol}: this may be a listener with "
            "TLS (SSL, SASL_SSL) or with a login"
        )
    return reason


def check_versions(address: Address, versions: Versions) -> None:
    """RpcError 35 where the broker lacks a request in the version we speak."""
    missing = [f"{api.name} v{api.version}" for api in apis.ALL if not api.supported_by(versions)]
    if missing:
        raise RpcError(
            "ApiVersions",
            Code.UNSUPPORTED_VERSION,
            f"broker {address} lacks {', '.join(missing)}; semel needs Kafka 3.1 or later",
        )
