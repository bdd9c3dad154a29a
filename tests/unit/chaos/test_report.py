"""What a run ended with: the document, the sentences, the page."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from semel.chaos.page import page, picture
from semel.chaos.report import NOT_COUNTED, Report, summary
from semel.chaos.timeline import Entry, Sample, Timeline
from semel.port import TP
from semel.proof import Finding, Gap, Law, Proof

CLEAN = Proof("payments", 0, None, None, (), {}, (), (), {"records": 9, "outputs": 9}, (), (), ledger=True, seconds=1.0)
LOST = replace(CLEAN, by_law={Law.NO_LOSS: 1}, findings=(Finding(Law.NO_LOSS, "one"),))
GAP = replace(CLEAN, gaps=(Gap(TP("payments", 0), 0, 5, "who knows"),))


def report(**changes: object) -> Report:
    timeline = Timeline(
        [
            Entry(1, "kill", "kill: SIGKILL", "w1", 1.0, 2.0, 3.0, True),
            Entry(2, "net", "net: cut <all>", "w2", 2.5, 2.5, 2.9, True, "odd"),
            Entry(3, "net", "net: delay", "w2", 4.0, 5.0, None, False),
        ],
        [Sample(at / 2, at * 100, at * 90, at * 10) for at in range(20)],
    )
    for at_s, phase in ((0.0, "starting"), (0.5, "running"), (1.0, "dead"), (2.0, "starting"), (3.0, "running")):
        timeline.turn("w1", at_s, phase)  # type: ignore[arg-type]
    made = Report(
        "payments", 7, 2, 1, 4, timeline, seconds=10.0, engine={**NOT_COUNTED, "duplicates": 5}, proof=CLEAN,
        events={"published": 100, "redelivered": 20}, left_out={"leader": "one broker"},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_clean_run_is_clean() -> None:
    assert (report().verdict, report().ok) == ("clean", True)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"findings": ["recovery ends: it did not"]}, "violated"),
        ({"proof": LOST}, "violated"),
        ({"proof": GAP}, "unprovable"),
        ({"void": ["no fault took place"]}, "void"),
        ({"void": ["no fault took place"], "findings": ["one"]}, "violated"),
        ({"proof": None}, "violated"),
    ],
)
def test_anything_else_is_not(changes: dict[str, object], verdict: str) -> None:
    assert (report(**changes).verdict, report(**changes).ok) == (verdict, False)


def test_the_document_has_the_sums() -> None:
    found = json.loads(json.dumps(report().document()))
    assert found["faults"]["kinds"] == {"kill": {"faults": 1, "bit": 1}, "net": {"faults": 2, "bit": 1}}
    assert (found["faults"]["total"], found["faults"]["bit"]) == (3, 2)
    assert found["recoveries"] == {"count": 2, "p50_s": 0.4, "p99_s": 1.0, "max_s": 1.0}
    assert found["proof"]["verdict"] == "clean"


def test_findings_of_the_run_come_before_those_of_the_proof() -> None:
    found = report(findings=["of the run"], proof=LOST)
    assert found.document()["findings"] == ["of the run", "no-loss: one"]
    assert summary(found).index("of the run") < summary(found).index("no-loss: one")
    assert summary(found).endswith("violated, seed 7")


def test_the_sentences_name_every_kind() -> None:
    said = summary(report())
    assert "1 kill, 2 net" in said
    assert "no leader: one broker" in said
    assert "proof: clean: payments keeps all 0 laws" in said


class Strict(HTMLParser):
    """Counts what is opened, and notes what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_has_a_picture_and_loads_nothing() -> None:
    read = Strict()
    read.feed(page(report()))
    assert read.tags["svg"] == 1
    assert read.loads == []
    assert "payments keeps all 0 laws" in page(report())


def test_what_a_fault_says_of_itself_is_escaped() -> None:
    text = page(report())
    assert "cut &lt;all&gt;" in text
    assert "cut <all>" not in text


def test_the_picture_has_a_mark_for_each_fault_and_a_bar_for_each_phase() -> None:
    drawn = picture(report().timeline, 10.0)
    assert drawn.count("<title>#") == 2 * 3
    assert [drawn.count(f">{kind}</text>") for kind in ("kill", "net", "w1")] == [1, 1, 1]
    assert drawn.count("<title>w1 ") == 5


def test_a_run_without_anything_still_has_a_page() -> None:
    assert "did not come to its proof" in page(Report("payments", 1, 2, 1, 4))


def test_conflicts_are_those_sent_and_those_that_workers_met() -> None:
    events = {"published": 100, "conflict": 7}
    assert "7 sent in conflict, 0 undecodable" in summary(report(events=events))
    assert "7 sent in conflict and 6 met as such, 0 undecodable" in summary(
        report(events={**events, "conflicts_met": 6})
    )


def test_events_that_were_given_up_are_named_beside_the_accepted_where_there_are_any() -> None:
    assert "accepted" not in summary(report(events={"published": 100, "accepted": 90, "given_up": 0}))
    said = summary(report(events={"published": 100, "accepted": 1_090, "given_up": 5}))
    assert "1,090 events accepted, 5 given up (dead letters)" in said


def test_what_a_run_does_not_show_is_said_in_words_document_and_page_and_changes_no_verdict() -> None:
    made = report(remarks=("nothing of <conflicts>",))
    assert made.ok
    assert made.document()["notes"] == ["nothing of <conflicts>"]
    assert "  note: nothing of <conflicts>" in summary(made)
    assert "note: nothing of &lt;conflicts&gt;" in page(made)


def test_what_compaction_took_is_said_where_it_took_something() -> None:
    assert "compacted" not in summary(report())
    made = report(events={"published": 9_000, "compacted": 2_500, "unread": 1_200})
    assert "2,500 were compacted away, 1,200 of them before they were known to be read" in summary(made)
