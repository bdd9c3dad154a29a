from __future__ import annotations

import subprocess
import sys

import pytest

from semel.display.folding import folded


@pytest.mark.parametrize(
    "text", ["a\nb", "\x1b[31mred", "\u202egpj", "\r\n", "\ud800", "\u2028", "ü" * 500, "x" * 5000]
)
def test_what_others_wrote_stands_on_one_line_that_prints(text: str) -> None:
    assert folded(text).isprintable()
    assert folded(folded(text)) == folded(text)
    assert len(folded(text, 200)) <= 201


def test_what_prints_stays_as_it_is() -> None:
    assert folded("Zürich 東京") == "Zürich 東京"
    assert folded("abcdef", 3) == "abc…"


def test_text_is_folded_also_where_an_interpreter_ends_and_finds_no_codec_any_more() -> None:
    code = (
        "import codecs, encodings\n"
        "from semel.display.folding import folded\n"
        "codecs.unregister(encodings.search_function)\n"
        "assert folded('a\\x1bb\\nc') == r'a\\x1bb\\nc'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
