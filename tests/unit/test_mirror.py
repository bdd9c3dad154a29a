"""Unit tests mirror the modules: `src/semel/a/b.py` is tested in `tests/unit/a/test_b.py`, or, a part of it, `test_b_part.py`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES, TESTS = ROOT / "src" / "semel", ROOT / "tests" / "unit"

# What a package does as a whole, or what no module of it does: each with its reason.
WHOLE = {
    "test_docs.py": "what the documentation says is so",
    "test_layers.py": "imports point one way",
    "test_mirror.py": "this",
    "test_public_names.py": "what `import semel` gives",
    "test_quickstart.py": "the quickstart, typed as it stands",
    "cli/test_main.py": "the command: exit codes, help, what a start imports",
    "faust_/test_private_names.py": "what is used of Faust beyond its API",
    "kafka/test_private_names.py": "what is used of aiokafka beyond its API",
    "stages/agent/test_blocking.py": "handlers that hold the event loop",
    "stages/agent/test_endings.py": "how an agent's code may end",
    "stages/agent/test_handlers.py": "what a handler may do to its epoch",
    "stages/agent/test_timeout.py": "handlers that are not done in time",
    "stages/dedup/test_rule_functions.py": "what functions of a dedup rule may do",
    "stages/dedup/test_stream_time.py": "stream time without a dedup rule",
}


def mirrors(test: Path) -> bool:
    """Whether there is a module that its name begins with."""
    folder = SOURCES / test.relative_to(TESTS).parent
    words = test.stem.removeprefix("test_").split("_")
    names = ["_".join(words[:end]) for end in range(len(words), 0, -1)]
    return any((folder / f"{name}{dash}.py").is_file() for name in names for dash in ("", "_"))


def test_each_file_of_unit_tests_stands_where_its_module_does() -> None:
    files = [file for file in TESTS.rglob("test_*.py") if str(file.relative_to(TESTS)) not in WHOLE]
    assert [str(file.relative_to(TESTS)) for file in files if not mirrors(file)] == []


def test_what_mirrors_no_module_is_there_and_would_not_be_found_otherwise() -> None:
    assert [name for name in WHOLE if not (TESTS / name).is_file() or mirrors(TESTS / name)] == []


def test_what_tests_share_stands_in_no_test() -> None:
    files = {file: file.read_text() for file in (ROOT / "tests").rglob("*.py")}
    assert [str(file) for file, text in files.items() if re.search(r"^from tests\.[\w.]*\.test_", text, re.M)] == []
