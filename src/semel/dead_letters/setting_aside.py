"""Setting aside: groups that are hidden until they recur, and keys that are forgotten as far as a log can forget."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from semel.dead_letters import audit
from semel.dead_letters.decisions import Selection
from semel.dead_letters.operator import Operator, Why
from semel.dead_letters.reading import NoLetters
from semel.port import TP


async def archive(operator: Operator, group: str, why: Why) -> None:
    """Hide a group until a letter of it comes. NoLetters where there is none."""
    ends = await operator.ends()
    count = 0
    async with aclosing(operator.reader.letters()) as letters:
        async for letter in letters:
            count += letter.fingerprint == group
    if not count:
        raise NoLetters(f"{operator.plan.dead_letter_topic} holds no letter of the group {group!r}; see `semel dlq ls`")
    entry = operator.entry("archive", why, (), ends={str(partition): end for partition, end in ends.items()})
    await operator.commit(replace(entry, groups={group: count}), ())


async def forget(operator: Operator, key: bytes, why: Why, *, delete: bool) -> dict[str, Any]:
    """Letters of a key are done with for good, and what Kafka lets be deleted of them is.

    A log that is not compacted gives up records from its beginning only: up to the last letter of the key where no other open
    letter stands before it. `kept`: where the key's content stands until retention, or until that is so.
    """
    # Also those that were replayed or dropped before: their bytes are here all the same.
    selection = Selection(key=key, again=True)
    marked = await operator.mark_all("forget", selection, why, key=audit.hashed(key))
    kept: dict[int, list[int]] = {}
    # The first record that is to stay, and whether it is an open letter: with somebody else's nobody here can be done.
    blocks: dict[int, tuple[int, bool]] = {}
    async with aclosing(operator.reader.records()) as records:
        async for letter, ours in records:
            partition = letter.at.partition
            if ours and letter.record.key == key:
                kept.setdefault(partition, []).append(letter.offset)
            elif not ours or not operator.ledger.done_by(letter):
                blocks.setdefault(partition, (letter.offset, ours))
    before = {
        TP(operator.plan.dead_letter_topic, p): min(offsets[-1] + 1, blocks[p][0] if p in blocks else sys.maxsize)
        for p, offsets in kept.items()
    }
    before = {tp: end for tp, end in before.items() if end > kept[tp.partition][0]}
    if delete and before:
        await operator.logs.asked(lambda: operator.broker.delete_records(before))
        kept = {
            p: [o for o in offsets if o >= before.get(TP(operator.plan.dead_letter_topic, p), 0)]
            for p, offsets in kept.items()
        }
    return {
        "letters": marked.letters,
        "deleted_before": {str(tp.partition): end for tp, end in before.items()} if delete else {},
        "could_delete_before": {} if delete else {str(tp.partition): end for tp, end in before.items()},
        "kept": {str(p): offsets for p, offsets in kept.items() if offsets},
        "blocked_by": _blocking(blocks, kept, ours=True),
        "blocked_by_others": _blocking(blocks, kept, ours=False),
    }


def _blocking(blocks: Mapping[int, tuple[int, bool]], kept: Mapping[int, list[int]], *, ours: bool) -> dict[str, int]:
    """What stands before the last kept letter of each partition; `ours`: letters of this app, or what is none."""
    return {str(p): at for p, (at, is_ours) in blocks.items() if is_ours is ours and kept.get(p) and at < kept[p][-1]}
