"""How one request and its answer travel: aiokafka's field types, arranged so that a call is an API and its values.

aiokafka's connection asks three things of a request: its header, its bytes, and how to read the
answer. `Call` answers them for any `Api`, so that an API is one entry of data in `apis`.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import RequestHeader_v1, RequestHeader_v2, ResponseHeader_v0, ResponseHeader_v1
from aiokafka.protocol.types import Array, CompactArray, Schema, TaggedFields

Versions = Mapping[int, tuple[int, int]]


class Uuid(AbstractType[bytes]):
    """Sixteen bytes, as they are."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class TaggedSchema(Schema):
    """A struct of a flexible API version: it ends in tagged fields, which we send empty and skip when reading."""

    def encode(self, item: Sequence[Any]) -> bytes:
        return super().encode(item) + b"\0"

    def decode(self, data: BytesIO) -> tuple[Any, ...]:
        values = super().decode(data)
        TaggedFields.decode(data)
        return values


def array(*fields: tuple[str, Any]) -> Array:
    """An array of structs."""
    return Array(Schema(*fields))


def tagged_array(*fields: tuple[str, Any]) -> CompactArray:
    """An array of structs of a flexible API version."""
    return CompactArray(TaggedSchema(*fields))


class Answer(tuple[Any, ...]):
    """The values of a response, in the order of its schema."""

    __slots__ = ()

    def __repr__(self) -> str:
        # aiokafka logs every answer at DEBUG; the records of users do not belong there.
        return f"<{len(self)} values>"


@dataclass(frozen=True, slots=True)
class Api:
    """One request of the Kafka protocol in the one version semel speaks."""

    name: str
    key: int
    version: int
    request: Schema
    response: Schema

    @property
    def flexible(self) -> bool:
        return isinstance(self.request, TaggedSchema)

    def throttle_ms(self, answer: Answer) -> int:
        """How long the broker asks to wait (KIP-219)."""
        # It stands first, but for Produce.
        names = self.response.names
        return answer[names.index("throttle_time_ms")] if "throttle_time_ms" in names else 0

    def decode(self, data: BytesIO) -> Answer:
        return Answer(self.response.decode(data))

    def supported_by(self, versions: Versions) -> bool:
        lowest, highest = versions.get(self.key, (0, -1))
        return lowest <= self.version <= highest

    def __call__(self, *values: Any) -> Call:
        return Call(self, values)


class Call:
    """A request on its way, in the shape in which aiokafka's connection takes one."""

    __slots__ = ("api", "values")

    def __init__(self, api: Api, values: tuple[Any, ...]) -> None:
        self.api = api
        self.values = values

    def prepare(self, versions: Versions) -> Call:
        if not self.api.supported_by(versions):
            raise IncompatibleBrokerVersion(f"{self.api.name} v{self.api.version} is not among the broker's versions")
        return self

    @property
    def API_KEY(self) -> int:
        return self.api.key

    @property
    def API_VERSION(self) -> int:
        return self.api.version

    @property
    def RESPONSE_TYPE(self) -> Api:
        return self.api

    def build_request_header(self, correlation_id: int, client_id: str) -> RequestHeader_v1 | RequestHeader_v2:
        header: Any = RequestHeader_v2 if self.api.flexible else RequestHeader_v1
        return header(self, correlation_id=correlation_id, client_id=client_id)

    def parse_response_header(self, read_buffer: BytesIO) -> ResponseHeader_v0 | ResponseHeader_v1:
        return (ResponseHeader_v1 if self.api.flexible else ResponseHeader_v0).decode(read_buffer)

    def encode(self) -> bytes:
        return self.api.request.encode(self.values)

    def __repr__(self) -> str:
        return f"<{self.api.name} v{self.api.version}>"
