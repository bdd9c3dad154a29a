"""`import semel`, and `import semel as faust`: every public name comes in when it is asked for, and not before."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import faust
import pytest

import semel

CONTRACT = {"Pipeline", "Topic", "Table", "Dedup", "Retry", "Output", "Reject", "App", "header", "content_hash"}


def test_the_names_of_the_contract_are_public() -> None:
    assert set(semel.__all__) >= CONTRACT
    assert set(semel.__all__) == {*semel._HOMES, "__version__"}
    assert set(dir(semel)) >= set(semel.__all__)


@pytest.mark.parametrize("name", semel.__all__)
def test_every_public_name_comes_in_and_has_one_home(name: str) -> None:
    found = getattr(semel, name)
    if name != "__version__":
        assert getattr(importlib.import_module(semel._HOMES[name]), name) is found


@pytest.mark.parametrize("name", ["Record", "Stream", "Worker", "Schema", "SASLCredentials", "uuid"])
def test_names_that_semel_does_not_define_are_fausts(name: str) -> None:
    assert getattr(semel, name) is getattr(faust, name)


@pytest.mark.parametrize("name", ["App", "Event", "Table", "Topic"])
def test_where_both_define_a_name_it_is_semels(name: str) -> None:
    found: Any = getattr(semel, name)
    assert found.__module__.startswith("semel.")
    assert found is not getattr(faust, name, None)


def test_modules_are_found_like_names() -> None:
    assert semel.retry is importlib.import_module("semel.retry")


def test_a_name_that_neither_has_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="semel has no 'Pipline', and faust has none either"):
        semel.Pipline  # noqa: B018
    assert not hasattr(semel, "__wrapped__")


def test_a_broken_module_is_not_taken_for_a_missing_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_here.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.setattr(semel, "__path__", [*semel.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        semel.broken_here  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import semel", {"faust", "aiokafka", "rocksdict", "msgspec"}),
        ("from semel import Retry, Reject, SemelError", {"faust", "aiokafka", "rocksdict"}),
        ("from semel import Dedup, Output, Pipeline, Table, Topic, header", {"faust", "aiokafka"}),
    ],
)
def test_importing_a_name_brings_in_no_more_than_it_needs(code: str, absent: set[str]) -> None:
    asked = f"import sys\n{code}\nprint(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_project_that_only_changes_its_import_gets_semels_app() -> None:
    code = "import semel as faust\nclass R(faust.Record): a: int\nassert issubclass(faust.App, __import__('faust').App)"
    subprocess.run([sys.executable, "-c", code], check=True)
