"""Decompression with a bound: a few kB from anybody who may write can stand for any number of MB.

A batch up to the bound is decompressed whole. Of a larger one its beginning is there, up to the bound, and no more.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from typing import Any

from aiokafka.errors import UnsupportedCodecError

try:
    import cramjam as _cramjam
except ImportError:  # without the library nothing but gzip can be read, as aiokafka has it
    _cramjam = None
cramjam: Any = _cramjam

# 32 times the batch of 1 MB that brokers take by default; a larger one may grow fourfold.
BOUND_BYTES = 32 << 20
BOUND_RATIO = 4

_FIRST_BYTES = 1 << 20
_KEPT_BYTES = 4 << 20
_GZIP_OR_ZLIB = 47
_XERIAL_HEADER = 16
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_BLOCK_LENGTH = struct.Struct(">i")


class _Scratch(threading.local):
    """What a batch is decompressed into before its bytes are taken out: made once, as large as was needed."""

    def __init__(self) -> None:
        self.buffer = bytearray(_FIRST_BYTES)


_scratch = _Scratch()


def bound_of(compressed: int) -> int:
    """How much a batch of so many compressed bytes may hold."""
    return max(BOUND_BYTES, BOUND_RATIO * compressed)


def decompressed(data: memoryview, number: int, bound: int) -> tuple[bytes, bool]:
    """The content, and whether that is all of it: else its first `bound` bytes, about.

    `number` as in a batch's attributes. UnsupportedCodecError; ValueError for what is damaged.
    """
    read = _READ.get(number)
    if read is None or (number != 1 and cramjam is None):
        raise UnsupportedCodecError(f"compression {number} cannot be read here")
    return read(data, bound)


def _gzip(data: memoryview, bound: int) -> tuple[bytes, bool]:
    plain, left = bytearray(), bytes(data)
    while left:
        reading = zlib.decompressobj(_GZIP_OR_ZLIB)
        try:
            plain += reading.decompress(left, bound + 1 - len(plain))
        except zlib.error as damaged:
            raise ValueError(f"gzip: {damaged}") from damaged
        if len(plain) > bound:
            return bytes(memoryview(plain)[:bound]), False
        if not reading.eof:
            raise ValueError("gzip: cut off")
        left = reading.unused_data
    return bytes(plain), True


def _framed(name: str) -> Callable[[memoryview, int], tuple[bytes, bool]]:
    def read(data: memoryview, bound: int) -> tuple[bytes, bool]:
        into = getattr(cramjam, name).decompress_into
        while True:
            buffer = _scratch.buffer
            space = memoryview(buffer)[: min(len(buffer), bound)]
            try:
                return bytes(space[: into(data, space)]), True
            except (cramjam.DecompressionError, OSError) as failed:
                if "write whole buffer" not in str(failed):
                    raise ValueError(f"{name}: {failed}") from failed
                if len(space) >= bound:
                    return bytes(space), False
            finally:
                space.release()
                if len(buffer) > _KEPT_BYTES:
                    _scratch.buffer = bytearray(_FIRST_BYTES)
            _scratch.buffer = bytearray(min(4 * len(buffer), bound))

    return read


def _snappy(data: memoryview, bound: int) -> tuple[bytes, bool]:
    if bytes(data[: len(_XERIAL_MAGIC)]) != _XERIAL_MAGIC:
        return _snappy_block(data, bound)
    plain, at = bytearray(), _XERIAL_HEADER
    while at < len(data):
        (length,) = _BLOCK_LENGTH.unpack_from(data, at)
        at += _BLOCK_LENGTH.size
        if not 0 <= length <= len(data) - at:
            raise ValueError("snappy: a block reaches beyond its batch")
        block, whole = _snappy_block(data[at : at + length], bound - len(plain))
        plain += block
        if not whole:
            return bytes(plain), False
        at += length
    return bytes(plain), True


def _snappy_block(block: memoryview, bound: int) -> tuple[bytes, bool]:
    try:
        if cramjam.snappy.decompress_raw_len(block) > bound:
            return b"", False
        return bytes(cramjam.snappy.decompress_raw(block)), True
    except (cramjam.DecompressionError, OSError) as damaged:
        raise ValueError(f"snappy: {damaged}") from damaged


_READ: dict[int, Callable[[memoryview, int], tuple[bytes, bool]]] = {
    1: _gzip,
    2: _snappy,
    3: _framed("lz4"),
    4: _framed("zstd"),
}
