"""Bit rot: what a disk does to a RocksDB while nobody looks."""

from __future__ import annotations

from pathlib import Path


def damage(path: Path, family: str, at: int = 8) -> int:
    """Change a block of each of a closed store's tables of this column family, the one of byte `at`. How many tables it has."""
    # A table says in its properties which family it is of. It begins with its data; what opening reads stands behind.
    tables = [table for table in path.glob("*.sst") if b"name" + family.encode() in table.read_bytes()]
    for table in tables:
        raw = bytearray(table.read_bytes())
        raw[at : at + 8] = bytes(b ^ 0xFF for b in raw[at : at + 8])
        table.write_bytes(raw)
    return len(tables)
