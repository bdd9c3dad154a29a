"""The page of /pipelines: what a browser shows of the document that the engine gives."""

import re

from semel.web import html

DOCUMENT = {
    "pipeline": "flights",
    "instance": "up-1",
    "graph": {
        "source": ["flights"],
        "dedup": {"key": "id", "window_ms": 604_800_000},
        "agents": ["watch_delays"],
        "tables": ["route_delays"],
        "sink": ["late-flights"],
    },
    "counts": {"in": 72_922, "out": 1_346, "filtered": 59_488, "duplicates": 11_508, "conflicts": 580, "dead": 580},
    "events_per_s": 9_437.4,
    "lag": 30_722,
    "commits": {"commits": 11, "aborts": 2, "unknown": 0, "fences": 1, "p50_ms": 327.3},
    "tasks": [
        {
            "partition": 0,
            "state": "running",
            "position": {"flights": 36_580},
            "stream_time_ms": 1_361_200_140_000,
            "lag": 15_223,
            "restored": 0,
            "to_restore": 0,
        },
        {
            "partition": 2,
            "state": "restoring",
            "position": {},
            "stream_time_ms": None,
            "lag": 0,
            "restored": 1_000,
            "to_restore": 5_000,
        },
    ],
    "owners": {"0": "up-1", "2": "up-1", "1": "up-2", "3": "up-2"},
    "waiting_for": "",
    "paused_by": "",
}


def words(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_five_stages_stand_in_order_with_their_numbers():
    shown = words(html.pipelines([DOCUMENT]))

    places = [shown.index(f" {stage} ") for stage in ("source", "dedup", "agent", "sink", "commit")]
    assert places == sorted(places)
    for number in ("72,922", "30,722", "11,508", "580", "60,834", "9,437.4", "1,346", "327.3"):
        assert number in shown


def test_a_record_with_several_results_is_accepted_once_and_each_result_counted_where_it_went():
    several = DOCUMENT | {
        "counts": {"in": 600, "out": 692, "filtered": 20, "duplicates": 30, "dead": 8},
        "outputs": {"late-flights": 540, "audit": 152},
    }
    shown = words(html.pipelines([several]))

    assert "accepted 562 " in shown
    assert "late-flights results 540 to audit 152 dead-lettered 8" in shown
    assert "accepted 562 " in words(html.index("flights", "up-1", [several], []))


def test_results_without_a_sink_are_those_of_the_topics_they_named():
    graph = DOCUMENT["graph"] | {"sink": []}
    counts = {"in": 9, "out": 12}
    few = DOCUMENT | {"graph": graph, "counts": counts, "outputs": {"<b>": 5, "a": 7}}
    many = few | {"outputs": {f"day-{n}": 2 for n in range(6)}}

    assert "none to &lt;b&gt; 5 to a 7 dead-lettered 0" in words(html.pipelines([few]))
    assert "none to 6 other topics 12 dead-lettered 0" in words(html.pipelines([many]))


def test_each_task_is_shown_with_its_state_and_how_far_its_restore_is():
    shown = words(html.pipelines([DOCUMENT]))

    assert "flights 36,580" in shown
    assert "2013-02-18 15:09:00 UTC" in shown
    assert "restoring 1,000 of 5,000" in shown
    assert "up-1: 0, 2; up-2: 1, 3" in shown


def test_the_page_loads_itself_again_without_a_script():
    page = html.pipelines([DOCUMENT])

    assert '<meta http-equiv="refresh" content="2">' in page
    assert "<script" not in page
    assert "refresh" not in html.document("x", {})


def test_a_worker_that_has_nothing_yet_says_what_it_waits_for():
    waiting = DOCUMENT | {
        "graph": DOCUMENT["graph"] | {"dedup": None, "sink": [], "tables": []},
        "counts": {},
        "tasks": [],
        "owners": {},
        "commits": {"commits": 0, "p50_ms": None},
        "waiting_for": "waiting for the topic <flights>",
    }

    page = html.pipelines([waiting])

    assert "waiting for the topic &lt;flights&gt;" in page
    assert "not assigned yet" in page


def test_names_and_states_never_become_markup():
    evil = "<img src=x>"
    hostile = DOCUMENT | {
        "pipeline": evil,
        "instance": evil,
        "graph": {
            "source": [evil], "dedup": {"key": evil}, "agents": [evil], "tables": [evil], "sink": [evil],
        },
        "owners": {"0": evil},
        "tasks": [DOCUMENT["tasks"][1] | {"state": evil, "position": {evil: 1}}],
        "paused_by": evil,
    }  # fmt: skip

    assert "<img" not in html.pipelines([hostile, {"name": evil}])


def test_it_says_that_an_agent_has_halted_and_what_holds_up_a_partition():
    halted = {"agent": "settle", "error": "OSError: <down>", "failed": 12, "seconds": 40.0, "next_probe_s": 14.6}
    parked = {
        "0": {"events": 3, "held_up": "3 events are parked, and 3 is the limit"},
        "2": {"events": 1, "held_up": ""},
    }

    shown = html.pipelines([DOCUMENT | {"halted": [halted], "parked": parked}])

    assert (
        "agent settle has halted: 12 events failed alike and none succeeded, the last with OSError: &lt;down&gt;; one is"
        in shown
    )
    assert "tried in 15 s" in shown
    assert "partition 0 takes no further events: 3 events are parked, and 3 is the limit" in shown
    assert "partition 2 takes" not in shown
    assert "halted" not in html.pipelines([DOCUMENT])


def test_it_says_how_many_keys_are_held():
    parked = {"0": {"events": 3, "held_up": "", "held": 2}, "1": {"events": 0, "held_up": "", "held": 1}}
    assert "3 keys are held" in html.pipelines([DOCUMENT | {"parked": parked}])
    assert "keys are held" not in html.pipelines([DOCUMENT])


def test_it_says_the_rate_limit_and_what_it_costs():
    limited = {"agent": "settle", "per_second": 1_000.0, "here_per_second": 250.0, "limited_s": 12.3, "limits": True}

    shown = html.pipelines([DOCUMENT | {"rate_limits": [limited]}])
    over = html.pipelines([DOCUMENT | {"rate_limits": [limited | {"limits": False}]}])

    said = "agent settle is given 250.0 events/s at most here, of 1,000.0 on all workers; events have waited for that for 12 s"
    assert said + ", and do now" in shown
    assert said in over and "do now" not in over
    assert "events/s" not in html.pipelines([DOCUMENT])
