import io

from rich.console import Console

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


def test_a_line_says_it_all() -> None:
    said = line(MOMENT)

    for words in ("12.3 s", "chaos", "faults 4", "published 9,000", "1,234/s", "lag 1,500", "findings 0",
                  "w1 running 0 2 (restoring)", "w2 frozen 1"):  # fmt: skip
        assert words in said


def test_the_picture_shows_the_faults_by_kind_and_the_workers() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(MOMENT))
    shown = console.file.getvalue()

    for words in ("semel chaos · chaos · 12 s of 60 s", "2 faults in force", "kill", "3 (2 bit)", "zombie", "1 (1 bit)",
                  "recovery 3.2 s (median)", "0 findings", "frozen", "pid 11", "0 2 (restoring)"):  # fmt: skip
        assert words in shown
