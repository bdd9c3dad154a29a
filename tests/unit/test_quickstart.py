"""The quickstart's project is one that semel's wheel alone runs: nothing of the repository lies beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"^```(?:python|toml)\n# ([\w/.]+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel installs."""
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [built] = dist.glob("semel-*.whl")
    with zipfile.ZipFile(built) as files:
        files.extractall(dist / "installed")
    return dist / "installed"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for path, content in FILE.findall((ROOT / "docs" / "quickstart.md").read_text()):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def run(wheel: Path, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of Python in the project's folder, with the semel of the wheel."""
    environment = {**os.environ, "PYTHONPATH": str(wheel), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )


def test_the_project_s_own_test_passes(wheel: Path, project: Path) -> None:
    assert (project / "tests" / "test_payments.py").is_file()
    (project / "tests" / "test_wheel.py").write_text(
        f"import semel\n\ndef test_it_is_the_wheel():\n    assert semel.__file__.startswith({str(wheel)!r})\n"
    )
    ended = run(wheel, project, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert ended.returncode == 0 and "2 passed" in ended.stdout, ended.stdout + ended.stderr


def test_the_worker_s_options_are_told_and_the_demo_names_where_it_is(wheel: Path, project: Path) -> None:
    helped = run(wheel, project, "-m", "semel", "worker", "--help")
    assert helped.returncode == 0 and "--instance" in helped.stdout, helped.stderr
    refused = run(wheel, project, "-m", "semel", "up")
    assert refused.returncode == 2 and "run it in the root of that" in " ".join(refused.stderr.split())
