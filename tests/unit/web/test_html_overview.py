"""The page at `/`: what a person sees first of a worker."""

import re

from semel.web import html
from semel.web.view import Owner

DOCUMENT = {
    "pipeline": "payments",
    "instance": "a",
    "graph": {
        "source": ["payments"],
        "dedup": {"key": "id", "window_ms": 604_800_000},
        "agents": ["settle"],
        "tables": ["balances", "limits/day"],
        "sink": ["settlements"],
    },
    "counts": {"in": 10_000, "out": 7_000, "filtered": 2_000, "duplicates": 600, "replayed": 7, "dropped": 93, "dead": 300},
    "events_per_s": 1_234.5,
    "lag": 4_321,
    "commits": {"commits": 11, "aborts": 0, "unknown": 0, "fences": 0, "p50_ms": 9.1},
    "tasks": [
        {"partition": 2, "state": "restoring", "position": {}, "stream_time_ms": None, "lag": 0, "restored": 1, "to_restore": 5},
        {"partition": 0, "state": "running", "position": {}, "stream_time_ms": None, "lag": 0, "restored": 0, "to_restore": 0},
    ],
    "owners": {"0": "a", "1": "b", "2": "a", "3": "c"},
    "waiting_for": "",
    "paused_by": "",
}  # fmt: skip
OWNERS = [
    Owner(0, None),
    Owner(1, "http://10.0.0.2:6066"),
    Owner(2, None),
    Owner(3, "http://10.0.0.3:6066/"),
]


def words(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_it_says_how_the_worker_is_and_what_became_of_the_records():
    shown = words(html.index("payments", "a", [DOCUMENT], OWNERS))

    for said in (
        "worker a", "0, 2", "running 1", "restoring 1", "lag 4,321", "records/s 1,234.5", "records 10,000",
        "accepted 9,000", "duplicates 600", "met again 7", "dropped 93", "dead-lettered 300",
    ):  # fmt: skip
        assert said in shown, said


def test_it_says_what_is_parked_and_what_is_to_be_sent_later_which_lag_and_records_do_not_count():
    parked = {"0": {"events": 1_200, "held_up": "", "held": 0}, "2": {"events": 5, "held_up": "", "held": 0}}
    tasks = [task | {"timers": 30} for task in DOCUMENT["tasks"]]
    shown = words(html.index("payments", "a", [DOCUMENT | {"parked": parked, "tasks": tasks}], OWNERS))
    assert "parked 1,205 timers pending 60" in shown
    assert "1,205 events are parked: in hand, or to be tried again, or behind such a one of the same key" in shown
    idle = words(html.index("payments", "a", [DOCUMENT], OWNERS))
    assert "parked 0" in idle and "timers" not in idle and "are parked" not in idle


def test_it_leads_to_the_tables_the_other_workers_and_the_other_views():
    page = html.index("payments", "a", [DOCUMENT], OWNERS)

    links = set(re.findall(r'href="([^"]+)"', page))
    assert {"/tables/balances", "/tables/limits%2Fday", "http://10.0.0.2:6066/", "http://10.0.0.3:6066/"} <= links
    assert {"/", "/tables", "/pipelines", "/readyz", "/livez", "/metrics"} <= links
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", page)
    assert [(words(name).strip(), held) for name, held in rows] == [("a (this one)", "0, 2"), ("b", "1"), ("c", "3")]


def test_a_worker_is_no_link_where_its_address_is_none_of_the_web():
    owners = [Owner(0, None), Owner(1, "javascript:alert(1)"), Owner(2, ""), Owner(3, 'http://x"onload="y')]

    page = html.index("payments", "a", [DOCUMENT], owners)

    assert "javascript:" not in page
    assert '"onload="' not in page
    assert len(re.findall(r'href="http', page)) == 1


def test_it_says_why_nothing_moves():
    waiting = DOCUMENT | {"waiting_for": "waiting for the source topic <t>", "tasks": [], "owners": {}, "counts": {}}

    shown = html.index("payments", "a", [waiting], [])

    assert "<bdi>waiting for the source topic &lt;t&gt;</bdi>" in shown
    assert "none here" in shown


async def test_a_worker_serves_it_to_a_browser_and_json_to_a_program(start, group, keyed, monkeypatch):
    first, second = await start(group(t=keyed({"k": 1})), "a", "b")
    found = DOCUMENT | {"owners": {"0": "a", "1": "b", "2": "a", "3": "b"}}
    monkeypatch.setattr(first.view, "pipelines", lambda: [found])

    page = await first.get("/", Accept="text/html")
    document = await first.get("/")

    assert page.status == 200
    assert f'<a href="{second.server.url}/"><bdi>b</bdi></a>' in page.text
    assert "lag" in words(page.text)
    assert (document.json["app"], document.json["instance"]) == ("shop", "a")
