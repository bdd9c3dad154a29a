"""The documentation keeps up with the code: what it must name it names, and what it names is there."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client.core import Metric

import semel
from semel import errors
from semel.broker import answers
from semel.broker.answers import Answer
from semel.config import BrokerSecurity, Settings
from semel.group.membership import MEMBER_STEPS
from semel.port import TP
from semel.runtime.failpoints import NAMES
from semel.stages.commit.epoch import EPOCH_STEPS
from semel.stages.fetch.lag import Histogram
from semel.stages.sink.dead_letters import HEADERS, HELD, DeadLetters, dead_letter
from semel.stages.sink.failure_cause import Cause
from semel.stages.sink.foreign_headers import FAMILIES
from semel.table import RESERVED
from semel.throttles import Throttles
from semel.worker import metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEST_LINK = re.compile(r"\[([\w ]+)\]\((?:\.\./)+(tests/[^)]+\.py)\)")
CODE_LINK = re.compile(r"`((?:[a-z_]+/)*[a-z_]+\.py)`(?: \(([^)]*)\))?")


@cache
def text(page: str) -> str:
    return (DOCS / page).read_text()


@cache
def links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("links", ROOT / ".ci" / "links.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks() -> list[Any]:
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, block in enumerate(BLOCK.findall(page.read_text()), 1)
    ]


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table after `heading`."""
    _, _, rest = text(page).partition(heading)
    lines = rest[rest.index("\n|") + 1 :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    assert links().broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](nowhere.md) [b](#there) [c](#here) `[d](code.md)`\n")
    assert [complaint.split(": ")[1] for complaint in links().broken(page)] == ["nowhere.md", "#there"]


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_every_test_that_is_linked_by_name_is_in_the_file(page: Path) -> None:
    for label, path in TEST_LINK.findall(page.read_text()):
        name = "test_" + label.replace(" ", "_")
        assert re.search(rf"^(async )?def {re.escape(name)}\(", (ROOT / path).read_text(), re.MULTILINE), (name, path)


def test_every_place_in_the_code_that_the_protocol_names_is_there() -> None:
    found = CODE_LINK.findall(text("protocol.md"))
    assert len(found) > 40
    code = "".join(file.read_text() for file in (ROOT / "src" / "semel").rglob("*.py"))
    for path, names in found:
        assert (ROOT / "src" / "semel" / path).is_file(), path
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", code), (path, name)


@pytest.mark.parametrize("block", blocks())
def test_every_python_block_compiles(block: str) -> None:
    ast.parse(block)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


# -- the reference


@pytest.mark.parametrize("name", semel.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in text("reference.md")


@pytest.mark.parametrize("declared", [semel.Pipeline, semel.Topic, semel.Table, semel.Dedup, semel.Retry, semel.Output])
def test_a_signature_of_the_reference_names_every_parameter(declared: Any) -> None:
    [signature] = re.findall(rf"^`{declared.__name__}\((.*)\)`", text("reference.md"), re.MULTILINE)
    named = re.findall(r"(?:^|, )(\w+)", signature)
    assert named == list(inspect.signature(declared).parameters)


@pytest.mark.parametrize("name", [n for n, e in vars(errors).items() if isinstance(e, type)])
def test_every_error_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in text("reference.md")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_reference_with_its_default(name: str) -> None:
    [row] = [r for r in rows("reference.md", "## Settings") if re.search(rf"`\[?{name}\]?`", r[0])]
    default = Settings.model_fields[name].default
    if isinstance(default, bool):
        assert str(default).lower() in row[1]
    elif isinstance(default, (int, Path)) or (isinstance(default, str) and default):
        assert str(default) in row[1]


@pytest.mark.parametrize("name", BrokerSecurity.model_fields)
def test_every_security_setting_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in text("reference.md")


def test_the_settings_of_the_reference_are_settings() -> None:
    named = {name for row in rows("reference.md", "## Settings") for name in re.findall(r"`\[?(\w+)\]?`", row[0])}
    assert named == set(Settings.model_fields)


def test_metrics_and_the_reference_name_the_same() -> None:
    class NoEngine:
        app = "app"
        tasks: dict[int, Any] = {}  # noqa: RUF012
        agents = ()
        commit_histogram = Histogram()
        timers = SimpleNamespace(lateness=Histogram())
        broker = SimpleNamespace(throttles=Throttles(lambda: 0.0))
        troubles = SimpleNamespace(counts={})

        def __getattr__(self, name: str) -> Any:
            return _Zeros() if name == "stats" else dict

    collected: list[Metric] = list(metrics.EngineCollector(NoEngine()).collect())  # pyright: ignore[reportArgumentType]
    exposed = {m.name + ("_total" if m.type == "counter" else "") for m in collected}
    assert {row[0].strip("`") for row in rows("reference.md", "## Metrics")} == exposed


class _Zeros(dict[str, float]):
    def __missing__(self, key: str) -> float:
        return 0


@pytest.mark.parametrize("name", NAMES)
def test_every_failpoint_is_in_the_reference(name: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", text("reference.md").partition("## Failpoints")[2])


def test_every_header_of_a_dead_letter_is_in_the_reference() -> None:
    class Large:
        offset, timestamp, key, headers = 1, 2, b"k", ()
        value = b"x" * 10_000

    out = dead_letter(
        DeadLetters("app.dlq", 1, 5_000, "v1", tuple(FAMILIES)), TP("t", 0), Large(),
        pipeline="app", agent="a", reason="failed", error="e", attempts=1, cause=Cause("f", "E", "trace"), first_ms=3, now_ms=3,
        hold=b"h",
    )  # fmt: skip
    named = {n for row in rows("reference.md", "## Dead letters") for n in re.findall(r"`(semel\.\w+)`", row[0])}
    others = set(re.findall(r"`((?:__|kafka_)[\w.-]+)`", text("reference.md").partition("## Dead letters")[2]))
    # What an operator holds back is no worker's letter.
    assert {name for name, _ in out.headers} == HEADERS - {HELD}
    assert {name for name in HEADERS if name.startswith("semel.")} == named
    assert {name for name in HEADERS if not name.startswith("semel.")} <= others


def test_the_reserved_table_names_are_in_the_reference() -> None:
    [line] = [line for line in text("reference.md").splitlines() if "reserved names" in line]
    assert set(re.findall(r"`(\w+)`", line)) == RESERVED


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "worker",
        "reset",
        "tables get",
        "tables scan",
        "dlq ls",
        "dlq show",
        "dlq replay",
        "dlq edit",
        "dlq drop",
        "dlq redirect",
        "dlq archive",
        "dlq forget",
        "kafka start",
        "kafka install",
    ],
)
def test_every_option_of_a_command_is_in_the_reference(command: str) -> None:
    from typer.main import get_command

    from semel.cli import app

    found: Any = get_command(app)
    for word in command.split():
        found = found.commands[word]
    [row] = [r for r in rows("reference.md", "## Command line") if r[0].startswith(f"`semel {command} ")]
    for parameter in found.params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert option in row[0], (command, option)


def test_every_command_is_in_the_reference() -> None:
    from typer.main import get_command

    from semel.cli import app

    top: Any = get_command(app)
    for name in top.commands:
        assert f"`semel {name} " in text("reference.md"), name


# -- the protocol and the design


def test_the_protocol_has_every_rule_once_and_in_order() -> None:
    assert re.findall(r"^### Rule (\d+)$", text("protocol.md"), re.MULTILINE) == [str(n) for n in range(1, 26)]


def test_every_rule_that_the_code_cites_is_one() -> None:
    cited = subprocess.run(
        ["git", "grep", "-hoiE", r"\brules? [0-9]+", "--", "src"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    numbers = {int(n) for n in re.findall(r"\d+", cited)}
    assert numbers
    assert numbers <= set(range(1, 26))


def test_the_machines_of_the_design_are_those_of_the_code() -> None:
    for heading, steps in (("**Member of the group**", MEMBER_STEPS), ("**Epoch**", EPOCH_STEPS)):
        assert {(row[0], row[1]) for row in rows("design.md", heading)} == {(a.name, b.name) for a, b in steps}


def test_the_answers_of_the_design_are_those_of_the_code() -> None:
    said = {row[0]: {int(code) for code in row[2].split(", ")} for row in rows("design.md", "### What a broker")}
    table = answers._COMMON  # pyright: ignore[reportPrivateUsage]
    assert said == {answer.name: {code for code, found in table.items() if found is answer} for answer in Answer}


def test_every_decision_is_in_the_list() -> None:
    listed = text("decisions/README.md")
    for page in (DOCS / "decisions").glob("*.md"):
        if page.name != "README.md":
            assert f"({page.name})" in listed
