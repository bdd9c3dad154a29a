"""What a run ended with, held against what it must end with. The one place that says what lost, doubled and wrong are.

Four witnesses are heard: the workers' own counts, the rows of the tables, the outputs, and the dead letters. An event
that one of them misses is mostly missed by others too, so that

* `lost` is the greatest number of events that a single witness misses (by the counts: events less accepted; by a table:
  the scheduled, departed and arrived that its rows hold too few; by the outputs: those not there), plus the redelivered
  records of other content that did not reach the dead letters;
* `doubled` is the same of what is there too often;
* `wrong_rows` counts rows and outputs, not events: table rows that differ, are missing, are not expected or come twice,
  and outputs with wrong content, not expected, or out of their key's order (one for each key).

A run is good when there is no finding at all; findings are these, and any count that does not add up:
records in = accepted + duplicates + replayed + dropped + dead letters, and each of them as many as were sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from feeds.truth import Outputs, compare, compare_outputs

# Fields of every row of the flights tables that count events.
EVENT_FIELDS = ("scheduled", "departed", "arrived")

Letter = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Expected:
    """What was sent, and what that must lead to. `conflicts`: key and value of redelivered records of other content."""

    events: int
    redelivered: int
    conflicts: Counter[Letter]
    tables: Mapping[str, Mapping[str, Any]]
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class Found:
    """What a user can see of the run: counts by the workers, (key, row) by the web views, the rest from the topics."""

    counts: Mapping[str, int]
    tables: Mapping[str, Sequence[tuple[str, Any]]]
    outputs: Sequence[tuple[str, Mapping[str, Any]]]
    dead_letters: Sequence[Letter]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The numbers as the module says, and every finding as a sentence."""

    accepted: int
    duplicates: int
    conflicts: int
    dead_lettered: int
    lost: int
    doubled: int
    wrong_rows: int
    findings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.findings


def judge(expected: Expected, found: Found) -> Verdict:
    """Pure: the same run gives the same verdict."""
    counts = Counter(found.counts)
    accepted = counts["out"] + counts["filtered"]
    findings = _unbalanced(expected, counts, accepted, len(found.dead_letters))
    missing, surplus = [max(0, expected.events - accepted)], [max(0, accepted - expected.events)]
    wrong = 0

    for table in dict.fromkeys((*expected.tables, *found.tables)):
        rows = found.tables.get(table, ())
        last = dict(rows)
        twice = [key for key, times in Counter(key for key, _ in rows).items() if times > 1]
        findings += [f"{table}[{key}] is given out more than once" for key in twice]
        differences = compare(table, expected.tables.get(table, {}), last)
        findings += map(str, differences)
        wrong += len(differences) + len(twice)
        less, more = _events_apart(expected.tables.get(table, {}), last)
        missing.append(less)
        surplus.append(more)

    differences = compare_outputs("outputs", expected.outputs, found.outputs)
    findings += map(str, differences)
    faults = Counter(difference.fault for difference in differences)
    missing.append(faults["lost"])
    surplus.append(faults["doubled"])
    wrong += faults["wrong"] + faults["unexpected"] + faults["out of order"]

    letters = Counter(found.dead_letters)
    not_there, too_many = expected.conflicts - letters, letters - expected.conflicts
    findings += [f"dead letters: {times} missing of {_shown(letter)}" for letter, times in not_there.items()]
    findings += [f"dead letters: {times} too many of {_shown(letter)}" for letter, times in too_many.items()]

    return Verdict(
        accepted=accepted,
        duplicates=counts["duplicates"],
        conflicts=counts["conflicts"],
        dead_lettered=len(found.dead_letters),
        lost=max(missing) + not_there.total(),
        doubled=max(surplus) + too_many.total(),
        wrong_rows=wrong,
        findings=tuple(findings),
    )


def _unbalanced(expected: Expected, counts: Counter[str], accepted: int, dead_letters: int) -> list[str]:
    conflicts = expected.conflicts.total()
    must = (
        ("records in", counts["in"], expected.events + expected.redelivered),
        ("accepted", accepted, expected.events),
        ("duplicates", counts["duplicates"], expected.redelivered - conflicts),
        ("conflicts", counts["conflicts"], conflicts),
        ("dead letters by the counts", counts["dead"], conflicts),
        ("dead letters on their topic", dead_letters, conflicts),
    )
    found = [f"{name}: {actual:,}, expected {wanted:,}" for name, actual, wanted in must if actual != wanted]
    done = accepted + counts["duplicates"] + counts["replayed"] + counts["dropped"] + counts["dead"]
    if counts["in"] != done:
        found.append(
            f"{counts['in']:,} records in are not {accepted:,} accepted + {counts['duplicates']:,} duplicates + "
            f"{counts['replayed']:,} replayed + {counts['dropped']:,} dropped + {counts['dead']:,} dead letters"
        )
    return found


def _events_apart(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> tuple[int, int]:
    """Events that the rows hold too few and too many, row by row, so that the two never cancel out."""
    less = more = 0
    for key in expected.keys() | actual.keys():
        ours, theirs = _events(expected.get(key)), _events(actual.get(key))
        for wanted, there in zip(ours, theirs, strict=True):
            less += max(0, wanted - there)
            more += max(0, there - wanted)
    return less, more


def _events(row: Any) -> tuple[int, ...]:
    if not isinstance(row, Mapping):
        return (0,) * len(EVENT_FIELDS)
    values = [cast("Mapping[str, Any]", row).get(name) for name in EVENT_FIELDS]
    return tuple(value if isinstance(value, int) else 0 for value in values)


def _shown(letter: Letter) -> str:
    key, value = letter
    return f"{key.decode(errors='replace')} {value[:200].decode(errors='replace')}"
