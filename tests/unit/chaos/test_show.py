import io
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from semel.chaos.fleet import Fleet
from semel.chaos.observed import Observed
from semel.chaos.plan import KINDS
from semel.chaos.show import line, picture
from semel.chaos.timeline import Entry, Sample, Timeline


def moment(active: int = 2, kinds: Any = ("kill", "kill", "kill", "zombie"), bit_from: int = 1) -> Fleet:
    observed = Observed("t", 3)
    for name, pid, tasks in (("w1", 11, {0: "running", 2: "restoring"}), ("w2", 12, {1: "running"})):
        observed.started(name, f"http://{name}", pid)
        held = [{"partition": partition, "state": state, "position": {}} for partition, state in tasks.items()]
        observed.heard(name, {"tasks": held, "counts": {}, "throttled": {}}, 0.0)
    timeline = Timeline(
        [Entry(number, kind, kind, "w1", 1.0, 2.0, 5.21, bit=number >= bit_from) for number, kind in enumerate(kinds)],
        [Sample(at_s, 9_000, round(at_s * 1_234.5), 1_500) for at_s in (10.34, 12.34)],
    )
    timeline.turn("w1", 0.0, "running")
    timeline.turn("w2", 0.0, "frozen")
    workers = [SimpleNamespace(name="w1", pid=11), SimpleNamespace(name="w2", pid=12)]
    return cast("Fleet", SimpleNamespace(
        timeline=timeline, observed=observed, everyone=workers, active=set(range(active)), goal="60 s", stage="chaos",
        findings=[],
    ))  # fmt: skip


def drawn(moment: Fleet, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(picture(moment))
    return file.getvalue()


def test_a_line_says_it_all() -> None:
    said = line(moment())

    for words in ("12.3 s", "chaos", "faults 4", "published 9,000", "1,234/s", "lag 1,500", "findings 0",
                  "w1 running 0 2 (restoring)", "w2 frozen 1"):  # fmt: skip
        assert words in said


def test_the_picture_shows_the_faults_by_kind_and_the_workers() -> None:
    shown = drawn(moment(), 120)

    for words in ("semel chaos · chaos · 12 s of 60 s", "2 faults in force", "kill", "3 (2 bit)", "zombie", "1 (1 bit)",
                  "recovery 3.2 s (median)", "0 findings", "frozen", "pid 11", "0 2 (restoring)"):  # fmt: skip
        assert words in shown


def test_every_kind_of_fault_has_its_whole_name_in_eighty_columns() -> None:
    shown = drawn(moment(kinds=KINDS * 100, bit_from=len(KINDS)), 80)

    assert all(kind in shown for kind in KINDS)
    assert shown.count("100 (99 bit)") == len(KINDS)


def test_one_fault_in_force_is_one() -> None:
    assert "1 fault in force" in drawn(moment(active=1), 120)
    assert "in force" not in drawn(moment(active=0), 120)
