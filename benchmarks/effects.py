"""Effects in PostgreSQL, each a row: through an inbox, and in plain psycopg loops beside it.

    python -m benchmarks.effects [--effects N] [--rounds R]

One connection, one effect after the other, on a PostgreSQL of its own without `fsync`, so that no disk hides what an inbox costs;
with `--fsync` it is on. `row`: BEGIN, the row, COMMIT, which doubles whatever is repeated. `claimed`: the same with a claim of
the key written by hand, the least that makes it once. `once`: an inbox. `repeated`: the same keys again. Each with a loop and
without, taking turns. The result is checked: a row for each effect.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from benchmarks import report
from semel import Inbox
from tests.postgres import Postgres, running

CASES = ("row", "claimed", "once", "repeated")
ROW = "INSERT INTO bookings (id, case_) VALUES (%s, %s)"
CLAIM = "INSERT INTO claims (key) VALUES (%s) ON CONFLICT DO NOTHING RETURNING true"
TARGET = 0.7
# Effects of one case before it is the next one's turn: what else the machine does then meets all of them.
TURN = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effects", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fsync", action="store_true", help="the disk is waited for, as in production")
    asked = parser.parse_args()
    tables = "bookings (id text NOT NULL, case_ text NOT NULL)", "claims (key text PRIMARY KEY)"
    with running(*tables, fsync=asked.fsync) as server:
        inbox = Inbox(server.url())
        rounds = [_round(server, inbox, asked.effects, number) for number in range(1, asked.rounds + 1)]
        inbox.close()
    names = [name for name in rounds[0] if name.endswith(("_per_s", "_ratio", "_us"))]
    median = report.medians(rounds, names)
    ok = all(r["ok"] for r in rounds)
    report.finish(
        {
            "benchmark": "effects", "effects": asked.effects, "fsync": asked.fsync, "ok": ok,
            "target": {"once_to_claimed_ratio": TARGET}, "median": median, "rounds": rounds,
        },
        f"once {median['once_per_s']:,.0f} effects/s, {median['once_to_claimed_ratio']} of a claim by hand, "
        f"{median['once_to_row_ratio']} of none; with a loop {median['once_async_per_s']:,.0f}, "
        f"{median['once_async_to_claimed_ratio']} and {median['once_async_to_row_ratio']}; "
        f"{'each once' if ok else 'WRONG: void'}",
    )  # fmt: skip


def _round(server: Postgres, inbox: Inbox, effects: int, number: int) -> dict[str, Any]:
    result: dict[str, Any] = {"round": number, "load": report.load_average()}
    result |= _figures("", effects, _sync(server.url(), inbox, f"{number}", effects))
    result |= _figures("_async", effects, asyncio.run(_async(server.url(), inbox, f"{number}a", effects)))
    with psycopg.connect(server.url(), autocommit=True) as connection:
        found = connection.execute(
            "SELECT case_, count(*), count(DISTINCT id) FROM bookings WHERE case_ LIKE ANY(%s) GROUP BY case_",
            ([f"%/{number}", f"%/{number}a"],),
        ).fetchall()
    result["ok"] = len(found) == 6 and all(rows == ids == effects for _, rows, ids in found)
    return result


def _figures(suffix: str, effects: int, spent: dict[str, Spent]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, (seconds, cpu) in spent.items():
        figures[f"{name}{suffix}_per_s"] = round(effects / seconds)
        figures[f"{name}{suffix}_cpu_us"] = round(1e6 * cpu / effects, 1)
    for other in ("claimed", "row"):
        figures[f"once{suffix}_to_{other}_ratio"] = round(spent[other].seconds / spent["once"].seconds, 2)
    return figures


class Spent:
    """Wall time and CPU of this process, over the turns of a case."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __iter__(self) -> Iterator[float]:
        return iter((self.seconds, self.cpu))

    @contextmanager
    def turn(self) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - began
        self.cpu += time.process_time() - cpu


def _turns(effects: int) -> Iterator[range]:
    return (range(begin, min(begin + TURN, effects)) for begin in range(0, effects, TURN))


def _sync(url: str, inbox: Inbox, part: str, effects: int) -> dict[str, Spent]:
    spent = {name: Spent() for name in CASES}
    with psycopg.connect(url, autocommit=True) as plain:
        for turn in _turns(effects):
            for name in ("row", "claimed"):
                with spent[name].turn():
                    for n in turn:
                        with plain.transaction():
                            if name == "row" or plain.execute(CLAIM, (f"{part}/{n}",)).fetchone():
                                plain.execute(ROW, (str(n), f"{name}/{part}"))
            for name in ("once", "repeated"):
                with spent[name].turn():
                    for n in turn:
                        with inbox.once(f"{part}/{n}", n) as connection:
                            connection.execute(ROW, (str(n), f"once/{part}"))
    return spent


async def _async(url: str, inbox: Inbox, part: str, effects: int) -> dict[str, Spent]:
    spent = {name: Spent() for name in CASES}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as plain:
        for turn in _turns(effects):
            for name in ("row", "claimed"):
                with spent[name].turn():
                    for n in turn:
                        async with plain.transaction():
                            if name == "row" or await (await plain.execute(CLAIM, (f"{part}/{n}",))).fetchone():
                                await plain.execute(ROW, (str(n), f"{name}/{part}"))
            for name in ("once", "repeated"):
                with spent[name].turn():
                    for n in turn:
                        async with inbox.once(f"{part}/{n}", n) as connection:
                            await connection.execute(ROW, (str(n), f"once/{part}"))
    await inbox.aclose()
    return spent


if __name__ == "__main__":
    main()
