"""What a run of the ledger must have left behind, and whether it did. No Kafka and no semel here: plain data.

`Truth` is folded from the source log by the one rule that needs no code to explain: in each partition, the first record
of an id counts. `broken_laws` holds what was found against it and names the witnesses.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.broker.logs import Line, Message

WITNESSES = 5


# -- events, by seed


class LawBroken(AssertionError):
    """Something is lost, doubled, out of order or torn, or it does not come to its end. Once is enough: never retried."""


def payments(seed: int, count: int, *, accounts: int = 40, redeliver: float = 0.15) -> list[Message]:
    """`count` payments with redeliveries among them: at once, in bursts, much later, and some with another amount."""
    rng = random.Random(seed)
    placed: list[tuple[float, Message]] = []
    for n in range(count):
        account = f"account-{rng.randrange(accounts)}"
        event = {"id": f"{seed}-{n}", "account": account, "amount": rng.randint(1, 1000)}
        key = account.encode()
        placed.append((n, Message(key, json.dumps(event).encode())))
        if rng.random() >= redeliver:
            continue
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            again = {**event, "amount": event["amount"] + 1} if rng.random() < 0.05 else event
            later = n + rng.choice((0.5, rng.uniform(1, 50), rng.uniform(100, 3000)))
            placed.append((later, Message(key, json.dumps(again).encode())))
    return [message for _, message in sorted(placed, key=lambda p: p[0])]


# -- the truth


@dataclass
class Counts:
    """Of one partition, as its position record counts."""

    records: int = 0
    out: int = 0
    duplicates: int = 0
    dead: int = 0


@dataclass
class Truth:
    """`settled`: account -> (id, balance after, timestamp) in order. `dead`: (reason, partition, offset)."""

    settled: dict[str, list[tuple[str, int, int]]]
    balances: dict[str, int]
    home: dict[str, int]
    dead: Counter[tuple[str, int, int]]
    counts: dict[int, Counts]
    source: dict[tuple[int, int], Line]

    @property
    def duplicates(self) -> int:
        return sum(c.duplicates for c in self.counts.values())


def truth_of(source: Sequence[Line], upto: Mapping[int, int] | None = None) -> Truth:
    """The source log, read committed, each partition in order; `upto`: only what lies before these offsets."""
    first: dict[tuple[int, str], bytes] = {}
    truth = Truth(defaultdict(list), defaultdict(int), {}, Counter(), defaultdict(Counts), {})
    for line in source:
        if upto is not None and line.offset >= upto.get(line.partition, 0):
            continue
        counts = truth.counts[line.partition]
        counts.records += 1
        truth.source[line.partition, line.offset] = line
        try:
            event = json.loads(line.value or b"")
            ident, account, amount = event["id"], event["account"], event["amount"]
            if (type(ident), type(account), type(amount)) != (str, str, int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            truth.dead["undecodable", line.partition, line.offset] += 1
            counts.dead += 1
            continue
        known = first.get((line.partition, ident))
        if known is not None:
            if known == line.value:
                counts.duplicates += 1
            else:
                truth.dead["conflict", line.partition, line.offset] += 1
                counts.dead += 1
            continue
        first[line.partition, ident] = line.value or b""
        truth.balances[account] += amount
        truth.home[account] = line.partition
        truth.settled[account].append((ident, truth.balances[account], line.timestamp))
        counts.out += 1
    return truth


# -- what was found


@dataclass
class Found:
    """What Kafka holds after a run, read committed. `viewed`: rows as the web views gave them, None if not asked."""

    settlements: list[Line]
    changelog: list[Line]
    positions: list[Line]
    dead_letters: list[Line]
    group_offsets: Mapping[int, int] = field(default_factory=dict)
    ends: Mapping[int, int] = field(default_factory=dict)
    viewed: Mapping[str, Any] | None = None


def broken_laws(truth: Truth, found: Found) -> list[str]:
    """Empty where every event took effect once, in order, and all records of it agree."""
    return [
        *_outputs(truth, found.settlements),
        *_rows(truth, found),
        *_dead_letters(truth, found.dead_letters),
        *_positions(truth, found),
    ]


def _some(things: Sequence[object]) -> str:
    return f"{len(things)}: {', '.join(map(str, things[:WITNESSES]))}{' ...' if len(things) > WITNESSES else ''}"


def _outputs(truth: Truth, settlements: Sequence[Line]) -> Iterator[str]:
    by_account: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    misplaced: list[str] = []
    for line in settlements:
        out = json.loads(line.value or b"{}")
        by_account[out["account"]].append((out["id"], out["balance"], line.timestamp))
        if line.partition != truth.home.get(out["account"]) or line.key != out["account"].encode():
            misplaced.append(out["id"])
    wanted = Counter(ident for rows in truth.settled.values() for ident, *_ in rows)
    got = Counter(ident for rows in by_account.values() for ident, *_ in rows)
    if lost := sorted((wanted - got).elements()):
        yield f"lost {_some(lost)}"
    if doubled := sorted((got - wanted).elements()):
        yield f"doubled or invented {_some(doubled)}"
    if misplaced:
        yield f"in a wrong partition or under a wrong key {_some(misplaced)}"
    for account, rows in by_account.items():
        right = truth.settled.get(account, [])
        if [r[0] for r in rows] != [r[0] for r in right] and sorted(r[0] for r in rows) == sorted(r[0] for r in right):
            yield f"{account} out of order at {next(a[0] for a, b in zip(rows, right, strict=True) if a[0] != b[0])}"
        if wrong := [r for r in rows if r not in set(right)]:
            yield f"{account}: balance or timestamp wrong in {_some(wrong)}"


def _rows(truth: Truth, found: Found) -> Iterator[str]:
    last: dict[str, tuple[int, int]] = {}
    for line in found.changelog:
        assert line.key is not None
        account = _account(line.key)
        if account in last and last[account][0] != line.partition:
            yield f"{account} has rows in partitions {last[account][0]} and {line.partition}"
        last[account] = (line.partition, json.loads(line.value or b"null"))
    rows = {account: balance for account, (_, balance) in last.items()}
    for where, held in (("changelog", rows), ("views", found.viewed)):
        if held is None:
            continue
        if wrong := sorted(a for a in {*held, *truth.balances} if held.get(a) != truth.balances.get(a)):
            yield f"{where}: wrong rows {_some([(a, held.get(a), truth.balances.get(a)) for a in wrong])}"


def _account(raw: bytes) -> str:
    """A row's key: text where the table says `key=str`, JSON where it is Faust's."""
    return json.loads(raw) if raw.startswith(b'"') else raw.decode()


def _dead_letters(truth: Truth, dead_letters: Sequence[Line]) -> Iterator[str]:
    found: Counter[tuple[str, int, int]] = Counter()
    for line in dead_letters:
        at = int(line.header("semel.partition")), int(line.header("semel.offset"))
        found[line.header("semel.reason"), *at] += 1
        original = truth.source.get(at)
        if original is None or (original.key, original.value) != (line.key, line.value):
            yield f"dead letter of {at} does not hold the original's bytes"
        elif line.headers[: len(original.headers)] != original.headers:
            yield f"dead letter of {at} does not hold the original's headers"
    if missing := sorted((truth.dead - found).elements()):
        yield f"not in the dead letters {_some(missing)}"
    if extra := sorted((found - truth.dead).elements()):
        yield f"in the dead letters and should not be {_some(extra)}"


def _positions(truth: Truth, found: Found) -> Iterator[str]:
    """Positions never go back, account for every record, and agree with the group's offsets."""
    last: dict[int, dict[str, Any]] = {}
    for line in found.positions:
        if line.key != b"position":
            continue
        now = json.loads(line.value or b"{}")
        [topic] = now["topics"].values()
        here = {"next": topic["next"], "generation": now["generation"], "counts": now["counts"]}
        before = last.get(line.partition)
        if before is not None:
            for name in ("next", "generation"):
                if here[name] < before[name]:
                    where = f"positions[{line.partition}]@{line.offset}"
                    yield f"{where}: {name} goes back from {before[name]} to {here[name]}"
            for name, count in here["counts"].items():
                if count < before["counts"].get(name, 0):
                    yield f"positions[{line.partition}]@{line.offset}: count {name} goes back"
        last[line.partition] = here
    for partition, counts in truth.counts.items():
        if partition not in last:
            yield f"no position for partition {partition}"
            continue
        said = last[partition]["counts"]
        wanted = {"in": counts.records, "out": counts.out, "duplicates": counts.duplicates, "dead": counts.dead}
        for name, count in wanted.items():
            if said[name] != count:
                yield f"positions[{partition}]: {name} is {said[name]}, should be {count}"
        if sum(said[n] for n in ("out", "filtered", "duplicates", "replayed", "dropped", "dead")) != said["in"]:
            yield f"positions[{partition}]: what went in does not add up to what became of it: {said}"
        for name, at in (("group offset", found.group_offsets), ("end of the source", found.ends)):
            if at and at.get(partition) != last[partition]["next"]:
                yield f"partition {partition}: position {last[partition]['next']}, {name} {at.get(partition)}"
