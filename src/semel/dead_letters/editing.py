"""Editing: what becomes of a letter with another value, and whether it is still the event that died. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from semel.dead_letters.audit import hashed
from semel.dead_letters.decisions import NotReplayable, check_value, diff, pretty, unpretty
from semel.dead_letters.letter import Letter
from semel.plan import Plan


class Edit(NamedTuple):
    """`changes`: the lines of a diff. Ids: of the dedup rule, None where there is none or nobody can say."""

    before: bytes | None
    after: bytes
    changes: list[str]
    id_before: bytes | None
    id_after: bytes | None

    @property
    def other_id(self) -> str:
        """Why it would be another event; empty where it is not."""
        if self.id_before is None or self.id_before == self.id_after:
            return ""
        return (
            f"its dedup id would be {_readable(self.id_after)} instead of {_readable(self.id_before)}: it would be another "
            "event, and the one that failed stays dead"
        )

    def more(self, *, hold: bool) -> dict[str, Any]:
        """What the audit has of it."""
        return {
            "before": hashed(self.before), "after": hashed(self.after), "dedup_id": hashed(self.id_after), "hold": hold
        }  # fmt: skip


def form_text(value: bytes | None) -> str:
    """The value for a form, which brings it back as it is where nobody touches it (`form_value`); else hex."""
    text = pretty(value)
    if all(c.isprintable() or c in "\n\t" for c in text) and not text.startswith("0x"):
        return text
    return f"0x{(value or b'').hex()}"


def form_value(text: str, before: bytes | None) -> bytes:
    """What a form brings. ValueError, in words."""
    try:
        # Forms end lines as HTTP does.
        return unpretty(text.replace("\r\n", "\n"), before)
    except ValueError:
        raise ValueError("a value that begins with 0x is bytes in hex, and this is none") from None


def edit_of(plan: Plan, letter: Letter, before: bytes | None, after: bytes) -> Edit:
    """NotReplayable where the pipeline could not read it, or does not read where it came from."""
    topic = plan.sources.get(letter.text("topic"))
    if topic is None:
        raise NotReplayable(
            f"{letter.position} came from {letter.text('topic')!r}, which is no source of {plan.app!r} any more"
        )
    check_value(topic.value, after)
    return Edit(before, after, diff(before, after), _dedup_id(plan, letter, before), _dedup_id(plan, letter, after))


def _dedup_id(plan: Plan, letter: Letter, value: bytes | None) -> bytes | None:
    topic, rule = plan.sources.get(letter.text("topic")), plan.dedup
    if topic is None or rule is None or value is None:
        return None
    try:
        id = rule.key_reader()(topic.value.decode(value), letter.with_value(value).record)
    except Exception:  # of what cannot be decoded
        return None
    return id if isinstance(id, bytes) else None


def _readable(id: bytes | None) -> str:
    return "none" if id is None else repr(id.decode(errors="backslashreplace"))
