"""A letter in all its parts, as one document: what commands and views show of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semel.dead_letters.audit import Entry
from semel.dead_letters.decisions import revision_of
from semel.dead_letters.letter import Letter, header_text, is_declared, is_waited_for, key_of, value_of
from semel.plan import Plan


def describe(letter: Letter, plan: Plan, state: str, value_from: str, history: Sequence[Entry]) -> dict[str, Any]:
    """`value_from`: where the value was read that the letter itself has no room for, or why it was not."""
    sources = plan.sources
    return {
        "topic": letter.at.topic,
        "position": letter.position,
        "state": state,
        "holds_key": bool(letter.hold) and is_waited_for(state),
        "source": letter.source,
        "pipeline": letter.text("pipeline"),
        "agent": letter.text("agent"),
        "reason": letter.text("reason"),
        "error": letter.text("error"),
        "fingerprint": letter.fingerprint,
        "exception": letter.text("exception") or None,
        "version": letter.text("code_version") or None,
        "attempts": letter.number("attempts"),
        "event_time": letter.number("timestamp"),
        "first_seen": letter.first_ms,
        "last_seen": letter.last_ms,
        "revision": revision_of(letter),
        "left_out": letter.text("left_out") or None,
        "value_from": value_from or None,
        "key": key_of(letter, sources),
        "value": value_of(letter, sources),
        "decoded": is_declared(letter, sources),
        "headers": [[name, header_text(name, value)] for name, value in letter.headers],
        # They were read from the last to the first.
        "appended": [
            [name, header_text(name, value)] for name, value in reversed(letter.own.items()) if name != "semel.trace"
        ],
        "trace": letter.text("trace") or None,
        "history": [entry_shown(entry) for entry in history],
    }


def entry_shown(entry: Entry) -> dict[str, Any]:
    """What was done, without which letters it was done with."""
    return {
        "action": entry.action, "at": entry.at_ms, "by": entry.by, "reason": entry.reason, "letters": entry.count, **entry.more
    }  # fmt: skip
