"""Dead letters say under which code they failed: what the deployment calls it, else the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from semel.runtime.code_version import code_version


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMEL_VERSION", raising=False)


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "pipelines").mkdir(parents=True)
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def test_what_the_deployment_says_comes_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMEL_VERSION", " v1.2.3 ")
    assert code_version(project) == "v1.2.3"


@pytest.mark.parametrize("how", ["branch", "packed", "detached", "worktree"])
def test_else_it_is_the_commit_that_is_checked_out(project: Path, how: str) -> None:
    commit, folder = git(project, "rev-parse", "HEAD"), project
    if how == "packed":
        git(project, "pack-refs", "--all")
    if how == "detached":
        git(project, "checkout", "-q", "--detach")
    if how == "worktree":
        folder = project.parent / "beside"
        git(project, "worktree", "add", "-q", "-b", "beside", str(folder))
    assert code_version(folder) == commit[:12]
    assert code_version(project / "pipelines") == commit[:12]


@pytest.mark.parametrize("head", ["ref: refs/heads/none", "what is this", "\x00"])
def test_a_repository_that_says_nothing_is_no_error(tmp_path: Path, head: str) -> None:
    (tmp_path / ".git").mkdir()
    assert code_version(tmp_path) == ""
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert code_version(tmp_path) == ""
