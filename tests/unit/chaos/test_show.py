import dataclasses
import io

from rich.console import Console

from semel.chaos.plan import KINDS
from semel.chaos.show import Shown, WorkerShown, line, picture

MOMENT = Shown(
    seconds=12.34,
    goal="60 s",
    stage="chaos",
    published=9_000,
    lag=1_500,
    rate=1_234.5,
    faults={"kill": {"faults": 3, "bit": 2}, "zombie": {"faults": 1, "bit": 1}},
    active=2,
    recovery_p50_s=3.21,
    findings=0,
    workers=(
        WorkerShown("w1", "running", 11, {0: "running", 2: "restoring"}),
        WorkerShown("w2", "frozen", 12, {1: "running"}),
    ),
)


def drawn(moment: Shown, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(picture(moment))
    return file.getvalue()


def test_a_line_says_it_all() -> None:
    said = line(MOMENT)

    for words in ("12.3 s", "chaos", "faults 4", "published 9,000", "1,234/s", "lag 1,500", "findings 0",
                  "w1 running 0 2 (restoring)", "w2 frozen 1"):  # fmt: skip
        assert words in said


def test_the_picture_shows_the_faults_by_kind_and_the_workers() -> None:
    shown = drawn(MOMENT, 120)

    for words in ("semel chaos · chaos · 12 s of 60 s", "2 faults in force", "kill", "3 (2 bit)", "zombie", "1 (1 bit)",
                  "recovery 3.2 s (median)", "0 findings", "frozen", "pid 11", "0 2 (restoring)"):  # fmt: skip
        assert words in shown


def test_every_kind_of_fault_has_its_whole_name_in_eighty_columns() -> None:
    shown = drawn(dataclasses.replace(MOMENT, faults={kind: {"faults": 100, "bit": 99} for kind in KINDS}), 80)

    assert all(kind in shown for kind in KINDS)
    assert shown.count("100 (99 bit)") == len(KINDS)


def test_one_fault_in_force_is_one() -> None:
    assert "1 fault in force" in drawn(dataclasses.replace(MOMENT, active=1), 120)
    assert "in force" not in drawn(dataclasses.replace(MOMENT, active=0), 120)
