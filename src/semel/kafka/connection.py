"""One socket to one broker: opened when first needed, closed when an answer stays away."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from aiokafka import conn
from aiokafka.errors import (
    BrokerResponseError,
    IncompatibleBrokerVersion,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from semel.kafka import apis
from semel.kafka.codes import describe
from semel.kafka.wire import Answer, Call, Versions
from semel.port import RpcError, RpcLost

_UNSUPPORTED_VERSION = 35
_MAX_IDLE_MS = 540_000  # below the broker's connections.max.idle.ms of 10 minutes, so that we hang up, not it
_UNBOUNDED_MS = 86_400_000  # aiokafka's own timer; ours is the deadline of each call

# aiokafka's connection has no types: here it becomes one.
_connect: Any = conn.create_conn  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connection:
    """Requests to one address, in order. Reopens itself; never sends a request twice.

    A call that gets no answer in time closes the socket, so that a late answer cannot arrive. A call that
    is cancelled closes it too unless others wait on it; aiokafka drops the answer to a cancelled call.
    """

    def __init__(self, address: Address, client_id: str, options: dict[str, Any], *, closed: bool = False) -> None:
        self.address = address
        self._client_id = client_id
        self._options = options
        self._socket: Any = None
        self._opening = asyncio.Lock()
        self._waiting = 0
        self._closed = closed

    @property
    def is_open(self) -> bool:
        return self._socket is not None and self._socket.connected()

    async def ask(self, call: Call, deadline: float) -> Answer:
        """Send once and wait for the answer until `deadline` (the loop's time). RpcLost; RpcError if not supported."""
        socket = await self._opened(call.api.name, deadline)
        try:
            reply = socket.send(call)
        except IncompatibleBrokerVersion as error:
            raise RpcError(call.api.name, _UNSUPPORTED_VERSION, str(error)) from error
        except KafkaError as error:
            self._hang_up(socket)
            raise RpcLost(call.api.name, f"{self.address}: {error}", sent=False) from error
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await reply
        except TimeoutError:
            self._hang_up(socket)
            raise RpcLost(call.api.name, f"{self.address} did not answer in time") from None
        except (KafkaError, OSError) as error:
            self._hang_up(socket)
            raise RpcLost(call.api.name, f"{self.address}: {error}") from error
        except asyncio.CancelledError:
            if self._waiting == 1:
                self._hang_up(socket)
            raise
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        self._closed = True
        if self._socket is not None:
            socket, self._socket = self._socket, None
            closed = socket.close()
            if closed is not None:
                await asyncio.wait([closed], timeout=1)

    async def _opened(self, api: str, deadline: float) -> Any:
        if self._socket is not None and self._socket.connected():
            return self._socket
        try:
            async with asyncio.timeout_at(deadline), self._opening:
                if self._socket is not None and self._socket.connected():
                    return self._socket
                self._socket = await self._open(api)
                return self._socket
        except TimeoutError:
            raise RpcLost(api, f"{self.address}: no connection in time", sent=False) from None

    async def _open(self, api: str) -> Any:
        if self._closed:
            raise RpcLost(api, "the client is closed", sent=False)
        try:
            socket = await _connect(
                self.address.host,
                self.address.port,
                client_id=self._client_id,
                request_timeout_ms=_UNBOUNDED_MS,
                max_idle_ms=_MAX_IDLE_MS,
                **self._options,
            )
        except (SaslAuthenticationFailed, UnsupportedSaslMechanismError) as error:
            raise _refused_login(error) from error
        except (KafkaError, OSError, AssertionError, ValueError) as error:
            # The last two are how aiokafka's SASL exchanges fail on an answer they do not understand.
            if isinstance(error, TimeoutError):
                raise
            raise RpcLost(api, f"{self.address}: {error or type(error).__name__}", sent=False) from error
        if self._closed:
            socket.close()
            raise RpcLost(api, "the client is closed", sent=False)
        try:
            check_versions(self.address, socket._versions)
        except RpcError:
            socket.close()
            raise
        return socket

    def _hang_up(self, socket: Any) -> None:
        socket.close()
        if self._socket is socket:
            self._socket = None


def _refused_login(error: BrokerResponseError) -> RpcError:
    return RpcError("SaslAuthenticate", error.errno, describe(error.errno, str(error)))


def check_versions(address: Address, versions: Versions) -> None:
    """RpcError 35 where the broker lacks a request in the version we speak."""
    missing = [f"{api.name} v{api.version}" for api in apis.ALL if not api.supported_by(versions)]
    if missing:
        raise RpcError(
            "ApiVersions",
            _UNSUPPORTED_VERSION,
            f"broker {address} lacks {', '.join(missing)}; semel needs Kafka 3.0 or later",
        )
