"""Every relative link in the repository's Markdown leads to a file that is there, and to a heading that is in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LINK = re.compile(r"\[[^\]\n]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The ids under which GitHub shows a page's headings."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeats = sum(1 for other in found if other == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", other))
        found.add(f"{slug}-{repeats}" if repeats else slug)
    return found


def broken(page: Path) -> list[str]:
    complaints: list[str] = []
    text = INLINE_CODE.sub("", FENCE.sub("", page.read_text()))
    for target in LINK.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            complaints.append(f"{page}: {target}: there is no {path}")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            complaints.append(f"{page}: {target}: no heading of {path or page} has this anchor")
    return complaints


def main() -> int:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        capture_output=True,
        text=True,
        check=True,
    )
    pages = [Path(name) for name in listed.stdout.splitlines()]
    complaints = [complaint for page in pages if page.exists() for complaint in broken(page)]
    for complaint in complaints:
        sys.stderr.write(f"{complaint}\n")
    sys.stderr.write(f"{len(pages)} pages, {len(complaints)} broken links\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
