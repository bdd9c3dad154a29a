"""The shipped settings files."""

import os
from pathlib import Path

import pytest

from semel.config import Settings, read_toml

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture(autouse=True)
def without_environment(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("SEMEL_")]:
        monkeypatch.delenv(name)


def test_default_toml_says_the_defaults():
    assert Settings.load(CONFIG / "default.toml").model_dump() == Settings().model_dump()


def test_default_toml_names_every_setting():
    lines = (CONFIG / "default.toml").read_text().splitlines()
    named = {line.lstrip("# [").partition(" ")[0].rstrip("]") for line in lines}
    assert set(Settings.model_fields) <= named


@pytest.mark.parametrize("name", ["default.toml", "local.toml"])
def test_a_shipped_file_holds_only_settings_that_are_known(name):
    assert read_toml(CONFIG / name)
