"""`semel dlq` acts on nothing that is not said clearly, and asks no broker before that."""

import pytest

from semel.cli.dlq_asked import key_of

PIPELINE = """
from semel import Pipeline, Topic

def agent(event):
    return event

pipeline = Pipeline("shop", source=Topic("orders"), agent=agent, sink=Topic("results"))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("replay", "shop"), 2, "say which letters: LETTER, --group FINGERPRINT, or --all"),
        (("replay", "shop", "1@1", "--all"), 2, "say which letters"),
        (("replay", "shop", "x"), 2, "'x' is no position"),
        (("replay", "shop", "--all", "--since", "yesterday"), 2, "--since 'yesterday' is not a time"),
        (("replay", "shop", "--all", "--key", "0xzz"), 2, "'0xzz' is no hex"),
        (("drop", "shop", "--all"), 2, "Missing option '--reason'"),
        (("drop", "shop", "--all", "--reason", " "), 2, "--reason is empty"),
        (("edit", "shop", "1@1", "--reason", "x", "--value", "f", "--set", "a=1"), 2, "two ways to give a new value"),
        (("redirect", "shop", "--all", "--to", "orders"), 2, "'orders' is a topic of 'shop' itself"),
        (("redirect", "shop", "--all", "--to", "shop-positions"), 2, "is a topic of 'shop' itself"),
        (("redirect", "shop", "--all", "--to", "shop.dlq"), 2, "is a topic of 'shop' itself"),
        (("redirect", "shop", "--all", "--to", "results"), 2, "'results' is a topic of 'shop' itself"),
        (("redirect", "shop", "--all", "--to", "results"), 2, "redirect to a topic that it does not write to"),
        (("forget", "shop", "k", "--reason", "x"), 2, "Nobody can be asked here; say --yes"),
    ],
)
async def test_what_is_not_clear_is_refused(semel, tmp_path, arguments, code, said):
    (tmp_path / "shop.py").write_text(PIPELINE)
    ran = await semel("dlq", *arguments, "--broker", "127.0.0.1:1")
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("drop", "shop", "--all", "--reason", "\udcff"), "--reason"),
        (("replay", "shop", "--all", "--as", "\udcff"), "--as"),
        (("redirect", "shop", "--all", "--to", "\udcff"), "--to"),
    ],
)
async def test_what_is_to_be_written_as_text_and_is_none_is_refused(semel, tmp_path, arguments, option):
    (tmp_path / "shop.py").write_text(PIPELINE)
    ran = await semel("dlq", *arguments, "--broker", "127.0.0.1:1")
    assert (ran.code, ran.out) == (2, "")
    assert f"{option} '" in ran.err and "is not UTF-8" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("replay", "shop", "\udcff"), 2),
        # A key is bytes.
        (("replay", "shop", "--all", "--key", "\udcff"), 3),
        (("forget", "shop", "\udcff", "--yes", "--reason", "x"), 3),
    ],
)
async def test_what_is_not_utf8_has_no_traceback(semel, tmp_path, arguments, code):
    (tmp_path / "shop.py").write_text(PIPELINE)
    ran = await semel("dlq", *arguments, "--broker", "127.0.0.1:1")
    assert (ran.code, ran.out) == (code, ""), ran.err


def test_a_key_is_the_bytes_that_were_typed():
    assert [key_of(text) for text in ("a\u00e4", "\udcff-\udc80", "0xff00")] == [
        "a\u00e4".encode(),
        b"\xff-\x80",
        b"\xff\x00",
    ]


@pytest.mark.parametrize("verb", ["replay", "drop", "redirect"])
async def test_a_broker_that_is_not_there_is_said(semel, tmp_path, verb):
    (tmp_path / "shop.py").write_text(PIPELINE)
    more = {"drop": ("--reason", "x"), "redirect": ("--to", "others")}.get(verb, ())
    ran = await semel("dlq", verb, "shop", "--all", "--yes", *more, "--broker", "127.0.0.1:1")
    assert (ran.code, ran.out) == (3, "")
    assert "Connect call failed" in ran.err
