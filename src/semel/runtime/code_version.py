"""Code version: which code runs here, as a deployment or git calls it. Read once, when a worker starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

VARIABLE = "SEMEL_VERSION"
_CHARACTERS = 100
_ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_ID_CHARACTERS = 12


def code_version(directory: Path) -> str:
    """`SEMEL_VERSION`, else the commit that is checked out in `directory` or above it; empty where neither is there.

    What was changed since that commit is not looked at.
    """
    if given := os.environ.get(VARIABLE, "").strip():
        return given[:_CHARACTERS]
    for folder in (directory, *directory.parents):
        if (folder / ".git").exists():
            try:
                return _head(folder / ".git")[:_ID_CHARACTERS]
            except (OSError, UnicodeDecodeError):
                return ""
    return ""


def _head(git: Path) -> str:
    if git.is_file():
        # A worktree, or a submodule: "gitdir: PATH".
        git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head if _ID.fullmatch(head) else ""
    ref = head.removeprefix("ref:").strip()
    common = git / "commondir"
    places = [git, (git / common.read_text().strip()).resolve()] if common.is_file() else [git]
    for place in places:
        if (place / ref).is_file():
            commit = (place / ref).read_text().strip()
            return commit if _ID.fullmatch(commit) else ""
    packed = places[-1] / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split(" ")[0] for line in lines if line.endswith(f" {ref}") and _ID.match(line)), "")
