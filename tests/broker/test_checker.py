"""The reckoning itself: it is green for what is right, and red for one event removed, one doubled, two swapped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from tests.broker.logs import Line
from tests.broker.truth import Found, Truth, broken_laws, payments, truth_of

PARTITIONS = 2


def source() -> list[Line]:
    lines: list[Line] = []
    offsets = [0] * PARTITIONS
    for n, message in enumerate(payments(7, 400, accounts=10, redeliver=0.4)):
        assert message.key is not None
        partition = message.key[-1] % PARTITIONS
        lines.append(Line(partition, offsets[partition], 1_000 + n, message.key, message.value))
        offsets[partition] += 1
    lines.append(Line(0, offsets[0], 5_000, b"account-0", b"\xff not json", (("trace", b"1"),)))
    return lines


def right(truth: Truth) -> Found:
    """What a faultless run leaves."""
    settlements = [
        Line(truth.home[account], n, timestamp, account.encode(), _json(id=ident, account=account, balance=balance))
        for account, rows in truth.settled.items()
        for n, (ident, balance, timestamp) in enumerate(rows)
    ]
    changelog = [
        Line(truth.home[account], 0, 0, account.encode(), json.dumps(balance).encode())
        for account, balance in truth.balances.items()
    ]
    dead: list[Line] = []
    for (reason, partition, offset), times in truth.dead.items():
        original = truth.source[partition, offset]
        said = {"semel.reason": reason, "semel.partition": str(partition), "semel.offset": str(offset)}
        headers = (*original.headers, *((name, text.encode()) for name, text in said.items()))
        dead += [Line(partition, 0, 0, original.key, original.value, headers)] * times
    positions = [
        Line(partition, n, 0, b"position", _position(partition, truth, share))
        for partition in truth.counts
        for n, share in enumerate((0.5, 1.0))
    ]
    ends = {partition: counts.records for partition, counts in truth.counts.items()}
    return Found(settlements, changelog, positions, dead, ends, ends, dict(truth.balances))


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def _position(partition: int, truth: Truth, share: float) -> bytes:
    counts = truth.counts[partition]
    whole = {"in": counts.records, "out": counts.out, "duplicates": counts.duplicates, "dead": counts.dead}
    said = {name: int(count * share) for name, count in whole.items()}
    said |= dict.fromkeys(("filtered", "replayed", "dropped"), 0)
    return _json(topics={"t": {"next": int(counts.records * share)}}, generation=1, counts=said)


def test_a_faultless_run_breaks_no_law() -> None:
    truth = truth_of(source())
    assert truth.duplicates > 0
    assert {reason for reason, *_ in truth.dead} == {"conflict", "undecodable"}
    assert broken_laws(truth, right(truth)) == []


def _without_one(found: Found) -> Found:
    return dataclasses.replace(found, settlements=found.settlements[:5] + found.settlements[6:])


def _doubled(found: Found) -> Found:
    return dataclasses.replace(found, settlements=[*found.settlements, found.settlements[5]])


def _swapped(found: Found) -> Found:
    lines = list(found.settlements)
    same = [n for n, line in enumerate(lines) if line.key == lines[0].key][:2]
    lines[same[0]], lines[same[1]] = lines[same[1]], lines[same[0]]
    return dataclasses.replace(found, settlements=lines)


def _elsewhere(found: Found) -> Found:
    moved = dataclasses.replace(found.settlements[5], partition=1 - found.settlements[5].partition)
    return dataclasses.replace(found, settlements=[*found.settlements[:5], moved, *found.settlements[6:]])


def _wrong_row(found: Found) -> Found:
    wrong = dataclasses.replace(found.changelog[0], value=b"1")
    return dataclasses.replace(found, changelog=[wrong, *found.changelog[1:]])


def _missing_row(found: Found) -> Found:
    return dataclasses.replace(found, changelog=found.changelog[1:])


def _wrong_view(found: Found) -> Found:
    return dataclasses.replace(found, viewed={})


def _no_dead_letter(found: Found) -> Found:
    return dataclasses.replace(found, dead_letters=found.dead_letters[1:])


def _other_bytes(found: Found) -> Found:
    last = dataclasses.replace(found.dead_letters[-1], value=b"{}")
    return dataclasses.replace(found, dead_letters=[*found.dead_letters[:-1], last])


def _no_headers(found: Found) -> Found:
    last = found.dead_letters[-1]
    bare = dataclasses.replace(last, headers=tuple(h for h in last.headers if h[0] != "trace"))
    return dataclasses.replace(found, dead_letters=[*found.dead_letters[:-1], bare])


def _back(found: Found) -> Found:
    return dataclasses.replace(found, positions=list(reversed(found.positions)))


def _behind(found: Found) -> Found:
    return dataclasses.replace(found, positions=[line for line in found.positions if line.offset == 0])


def _group_elsewhere(found: Found) -> Found:
    return dataclasses.replace(found, group_offsets={**found.group_offsets, 0: 1})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_without_one, "lost 1"),
        (_doubled, "doubled or invented 1"),
        (_swapped, "out of order"),
        (_elsewhere, "in a wrong partition"),
        (_wrong_row, "changelog: wrong rows 1"),
        (_missing_row, "changelog: wrong rows 1"),
        (_wrong_view, "views: wrong rows"),
        (_no_dead_letter, "not in the dead letters 1"),
        (_other_bytes, "does not hold the original's bytes"),
        (_no_headers, "does not hold the original's headers"),
        (_back, "goes back"),
        (_behind, "should be"),
        (_group_elsewhere, "group offset 1"),
    ],
)
def test_each_fault_breaks_a_law_and_is_named(fault: Callable[[Found], Found], said: str) -> None:
    truth = truth_of(source())
    broken = broken_laws(truth, fault(right(truth)))
    assert any(said in law for law in broken), broken
