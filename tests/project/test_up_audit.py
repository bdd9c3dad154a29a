"""The audit can fail: a run that is right in all but one thing is found out, and the thing is named."""

from collections import Counter
from copy import deepcopy
from dataclasses import replace

import pytest

from demos.up.audit import Expected, Found, judge
from feeds.truth import FlightsTruth

DUPLICATES = 5
CONFLICTS = Counter({(b"JFK-LAX", b'{"id":"JFK-0-arrived","delay":1}'): 1, (b"EWR-ORD", b'{"id":"x"}'): 2})


def events():
    for origin, dest in (("JFK", "LAX"), ("EWR", "ORD")):
        for number in range(6):
            for kind, delay in (("scheduled", None), ("departed", number), ("arrived", 70 + number)):
                yield {
                    "id": f"{origin}-{number}-{kind}",
                    "kind": kind,
                    "time": f"2013-01-0{number + 1}T10:00Z",
                    "carrier": "AA" if number % 2 else "UA",
                    "flight": number,
                    "origin": origin,
                    "dest": dest,
                    "delay": delay,
                }


@pytest.fixture
def expected():
    truth = FlightsTruth(events())
    redelivered = DUPLICATES + CONFLICTS.total()
    return Expected(truth.events, redelivered, CONFLICTS, truth.tables, truth.late_flights)


@pytest.fixture
def found(expected):
    """What a run without a fault shows, in structures of its own."""
    outputs = [(key, value) for key, values in expected.outputs.by_key.items() for value in values]
    received = expected.events + expected.redelivered
    counts = {
        "in": received,
        "out": len(outputs),
        "filtered": expected.events - len(outputs),
        "duplicates": DUPLICATES,
        "replayed": 0,
        "conflicts": CONFLICTS.total(),
        "dropped": 0,
        "dead": CONFLICTS.total(),
    }
    tables = {name: list(rows.items()) for name, rows in expected.tables.items()}
    return deepcopy(Found(counts, tables, outputs, list(CONFLICTS.elements())))


def numbers(verdict):
    return verdict.lost, verdict.doubled, verdict.wrong_rows


def test_a_run_that_is_right_has_no_findings(expected, found):
    verdict = judge(expected, found)

    assert verdict.ok
    assert verdict.findings == ()
    assert numbers(verdict) == (0, 0, 0)
    assert (verdict.accepted, verdict.duplicates) == (36, DUPLICATES)
    assert verdict.conflicts == verdict.dead_lettered == 3


def test_the_order_between_keys_does_not_matter(expected, found):
    jfk = [output for output in found.outputs if output[0] == "JFK-LAX"]
    ewr = [output for output in found.outputs if output[0] == "EWR-ORD"]
    mixed = [output for pair in zip(ewr, jfk, strict=True) for output in pair]

    assert judge(expected, replace(found, outputs=mixed)).ok


def test_an_output_that_is_missing_is_lost(expected, found):
    del found.outputs[3]

    verdict = judge(expected, found)

    assert not verdict.ok
    assert numbers(verdict) == (1, 0, 0)
    assert verdict.findings[0].startswith("outputs[JFK-3-arrived] lost")


def test_an_output_that_is_there_twice_is_doubled(expected, found):
    found.outputs.append(found.outputs[3])

    verdict = judge(expected, found)

    assert not verdict.ok
    assert numbers(verdict) == (0, 1, 0)


def test_two_outputs_of_a_key_swapped_are_found(expected, found):
    found.outputs[1], found.outputs[2] = found.outputs[2], found.outputs[1]

    verdict = judge(expected, found)

    assert not verdict.ok
    assert numbers(verdict) == (0, 0, 1)
    assert "out of order" in verdict.findings[0]


@pytest.mark.parametrize("change", [{"delay": 999}, {"id": "nobody"}])
def test_an_output_with_other_content_is_wrong(change, expected, found):
    key, value = found.outputs[0]
    found.outputs[0] = (key, value | change)

    verdict = judge(expected, found)

    assert not verdict.ok
    assert verdict.wrong_rows == 1


@pytest.mark.parametrize("table", ["carrier_delays", "route_delays", "airport_hour_delays"])
def test_one_row_with_another_sum_is_wrong(table, expected, found):
    key, row = found.tables[table][0]
    found.tables[table][0] = (key, row | {"departure_minutes": row["departure_minutes"] + 1})

    verdict = judge(expected, found)

    assert not verdict.ok
    assert numbers(verdict) == (0, 0, 1)
    assert verdict.findings[0].startswith(f"{table}[{key}] wrong")


def test_an_event_that_a_row_holds_twice_is_doubled(expected, found):
    key, row = found.tables["route_delays"][0]
    found.tables["route_delays"][0] = (key, row | {"arrived": row["arrived"] + 1})

    assert numbers(judge(expected, found)) == (0, 1, 1)


def test_an_event_lost_and_another_doubled_do_not_cancel_out(expected, found):
    (first, less), (second, more) = found.tables["route_delays"]
    found.tables["route_delays"][:] = [
        (first, less | {"arrived": less["arrived"] - 1}),
        (second, more | {"arrived": more["arrived"] + 1}),
    ]

    assert numbers(judge(expected, found)) == (1, 1, 2)


def test_a_row_that_is_missing_loses_its_events(expected, found):
    key, row = found.tables["route_delays"].pop()

    verdict = judge(expected, found)

    assert numbers(verdict) == (row["scheduled"] + row["departed"] + row["arrived"], 0, 1)
    assert f"route_delays[{key}] lost" in verdict.findings[0]


def test_a_row_that_nobody_expects_is_wrong(expected, found):
    found.tables["route_delays"].append(("LGA-XXX", {"scheduled": 0}))

    assert numbers(judge(expected, found)) == (0, 0, 1)


def test_a_row_given_out_twice_is_wrong_even_if_it_says_the_same(expected, found):
    found.tables["route_delays"].append(found.tables["route_delays"][0])

    assert numbers(judge(expected, found)) == (0, 0, 1)


def test_a_table_that_is_not_there_has_lost_everything(expected, found):
    del found.tables["carrier_delays"]

    assert judge(expected, found).lost == expected.events


def test_one_event_seen_by_every_witness_counts_once(expected, found):
    """An arrival that nothing knows of: neither the counts, nor three rows, nor the outputs."""
    event = next(e for e in events() if e["id"] == "JFK-3-arrived")
    without = FlightsTruth(e for e in events() if e["id"] != event["id"])
    less = replace(
        found,
        counts=found.counts | {"in": found.counts["in"] - 1, "out": found.counts["out"] - 1},
        tables={name: list(rows.items()) for name, rows in without.tables.items()},
        outputs=[output for output in found.outputs if output[1]["id"] != event["id"]],
    )

    verdict = judge(expected, less)

    assert verdict.lost == 1
    assert verdict.doubled == 0
    assert not verdict.ok


@pytest.mark.parametrize("count", ["in", "out", "filtered", "duplicates", "conflicts", "dead", "replayed", "dropped"])
def test_every_count_that_does_not_add_up_is_a_finding(count, expected, found):
    for change in (1, -1):
        verdict = judge(expected, replace(found, counts=found.counts | {count: found.counts[count] + change}))
        assert not verdict.ok, (count, change)


def test_more_accepted_than_sent_is_doubled_and_fewer_is_lost(expected, found):
    counts = found.counts
    assert judge(expected, replace(found, counts=counts | {"filtered": counts["filtered"] + 2})).doubled == 2
    assert judge(expected, replace(found, counts=counts | {"filtered": counts["filtered"] - 2})).lost == 2


def test_a_conflict_that_is_not_among_the_dead_letters_is_lost_and_one_too_many_is_doubled(expected, found):
    letters = found.dead_letters

    assert numbers(judge(expected, replace(found, dead_letters=letters[1:]))) == (1, 0, 0)
    assert numbers(judge(expected, replace(found, dead_letters=[*letters, letters[0]]))) == (0, 1, 0)


def test_a_dead_letter_with_other_bytes_is_both_lost_and_not_expected(expected, found):
    changed = [(found.dead_letters[0][0], b"{}"), *found.dead_letters[1:]]

    verdict = judge(expected, replace(found, dead_letters=changed))

    assert not verdict.ok
    assert numbers(verdict) == (1, 1, 0)
