"""Where a worker is reached: the URL that it says of itself."""

from __future__ import annotations

from urllib.parse import urlsplit

# Longer than any host name with a port and a proxy's path; each task of the group carries one.
CHARACTERS_MAX = 1000


def worker_url(text: str) -> str | None:
    """The URL without a slash at its end; None for what is no `http(s)://host[:port][/path]`. "" stays: no address."""
    if not text:
        return ""
    if len(text) > CHARACTERS_MAX or not text.isascii() or not text.isprintable() or set(text) & set(" \\@?#\"'<>"):
        return None
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        return None
    return text.rstrip("/") if usable else None
