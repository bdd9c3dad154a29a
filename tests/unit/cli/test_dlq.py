"""`semel dlq` refuses what it cannot look for before it asks a broker."""

import pytest

PIPELINE = """
from semel import Pipeline, Topic

def agent(event):
    return event

pipeline = Pipeline("shop", source=Topic("orders"), agent=agent, sink=Topic("results"))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "shop", "x@1"), 2, "'x@1' is no position"),
        (("show", "shop", "results[1]@1"), 2, "neither the dead-letter topic 'shop.dlq' nor a source"),
        (("show", "shop"), 2, "give PARTITION@OFFSET of a dead letter, or --group"),
        (("show", "shop", "1@1", "--group", "f"), 2, "give PARTITION@OFFSET of a dead letter, or --group"),
        (("ls", "shop", "--broker", "127.0.0.1:1"), 3, "Connect call failed"),
        (("ls", "shop", "--done", "--archived"), 2, "two different lists"),
    ],
)
async def test_what_cannot_be_looked_for_is_refused(semel, tmp_path, arguments, code, said):
    (tmp_path / "shop.py").write_text(PIPELINE)
    ran = await semel("dlq", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
