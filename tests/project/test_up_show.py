import io

from rich.console import Console

from demos.up.report import Report
from demos.up.show import Shown, WorkerShown, line, picture, summary

MOMENT = Shown(
    seconds=12.34,
    limit=10_000,
    events=8_000,
    published=9_000,
    processed=7_500,
    rate=1_234.5,
    counts={"out": 200, "filtered": 6_000, "duplicates": 1_100, "conflicts": 55, "dead": 55},
    commits=321,
    commit_ms=7.5,
    url="http://127.0.0.1:6066",
    workers=(
        WorkerShown("up-1", "running", 11, {0: "running", 2: "restoring"}, 500.0),
        WorkerShown("up-2", "killed", 12, {}, 0.0),
    ),
    told="up-2 killed",
)


def test_a_line_says_it_all():
    said = line(MOMENT)

    for words in ("12.3 s", "1,234/s", "published 9,000", "processed 7,500", "lag 1,500", "duplicates 1,100",
                  "conflicts 55", "dead letters 55", "commits 321", "up-1 running 0 2 (restoring)",
                  "up-2 killed"):  # fmt: skip
        assert words in said


def test_the_picture_shows_the_five_stages_and_the_workers():
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(MOMENT))
    shown = console.file.getvalue()

    for words in ("source →", "dedup →", "agent →", "sink →", "commit", "1,500 lag", "6,200 accepted", "7.5 ms",
                  "up-1", "restoring", "killed", "http://127.0.0.1:6066/pipelines"):  # fmt: skip
        assert words in shown


def test_the_report_has_the_contract_s_keys_in_its_order_and_says_more_only_when_it_must():
    report = Report(7, events=100, redelivered=20, seconds=2.0)

    assert list(report.document()) == [
        "events", "redelivered", "accepted", "duplicates", "conflicts", "dead_lettered", "lost", "doubled",
        "wrong_rows", "kills", "seconds", "events_per_s", "seed", "ok",
    ]  # fmt: skip
    assert report.document()["ok"] is False
    assert report.document()["events_per_s"] == 50

    report.findings = tuple(f"finding {n}" for n in range(50))
    report.error = "why"
    assert len(report.document()["findings"]) == 20
    assert report.document()["error"] == "why"


def test_a_summary_says_ok_only_where_the_report_does():
    bad = Report(7, events=100, lost=1, doubled=0, wrong_rows=2, findings=("route_delays[x] wrong",)).document()
    good = bad | {"lost": 0, "wrong_rows": 0, "ok": True, "findings": []}

    assert "1 lost, 0 doubled, 2 wrong: NOT OK" in summary(bad)
    assert "route_delays[x] wrong" in summary(bad)
    assert summary(good).endswith("0 lost, 0 doubled, 0 wrong: ok")
