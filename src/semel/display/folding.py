"""Folding: text from outside (events, paths, brokers, user code) put on one line, so that it cannot pass for another."""

from __future__ import annotations

import codecs

# Looked up now: where an interpreter ends and logs what was left open, no codec is found any more.
_escaped = codecs.getencoder("unicode_escape")


def folded(text: str, most: int | None = None) -> str:
    """`text` with everything that does not print (line ends, escape sequences, lone surrogates) as `\\n`, `\\x1b`, ...
    Cut to `most` characters, where given."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c)[0].decode("ascii") for c in text)
    return text if most is None or len(text) <= most else text[:most] + "…"
