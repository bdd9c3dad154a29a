"""Models of pydantic as codecs: JSON as pydantic writes and checks it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from semel import codec
from semel.codec import Codec, union_of
from semel.errors import DeclarationError, DecodeError

_SAID = 3  # of what is wrong with a value


def _is_model(declared: Any) -> bool:
    parts = union_of(declared) or (declared,)
    return any(isinstance(part, type) and issubclass(part, BaseModel) for part in parts)


def _model_codec(declared: Any) -> Codec[Any]:
    adapter: TypeAdapter[Any] = TypeAdapter(declared)
    models = tuple(p for p in union_of(declared) or (declared,) if p is not type(None))
    if not all(isinstance(m, type) and issubclass(m, BaseModel) for m in models):
        raise DeclarationError(f"{declared} holds more than models of pydantic; declare a union of models alone")
    name = " | ".join(m.__name__ for m in models)

    def encode(value: Any) -> bytes:
        if not isinstance(value, models):
            raise TypeError(f"expected {name}, got {type(value).__name__}: {value!r:.120}")
        try:
            raw = adapter.dump_json(value, by_alias=True, warnings="error")
            # NaN and infinity are written as null.
            same = b"null" not in raw or adapter.validate_json(raw) == value
        except (PydanticSerializationError, ValueError) as exc:
            raise TypeError(f"{value!r:.120} does not fit in JSON: {exc}") from exc
        if not same:
            raise TypeError(f"{value!r:.120} would not come back from JSON as it is")
        return raw

    def decode(raw: bytes) -> Any:
        try:
            return adapter.validate_json(raw)
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_context=False, include_input=False)
            wrong = [f"{'.'.join(map(str, e['loc'])) or 'the value'}: {e['msg']}" for e in errors]
            more = f"; and {len(wrong) - _SAID} more" if len(wrong) > _SAID else ""
            raise DecodeError(f"not of type {name}: {'; '.join(wrong[:_SAID])}{more}{codec.hint(raw)}") from exc

    return Codec(declared, encode, decode, False)


codec.register(_is_model, _model_codec)
