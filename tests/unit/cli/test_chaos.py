"""`semel chaos` before anything runs: what it refuses, and with which exit code."""

PIPELINE = """
from semel import Pipeline, Topic
def agent(event): ...
pipeline = Pipeline("orders", source=Topic("orders"{value}), agent=agent)
"""


async def test_a_source_without_types_is_refused_with_the_ways_out(semel, tmp_path):
    (tmp_path / "orders.py").write_text(PIPELINE.format(value=""))

    ran = await semel("chaos", "orders")

    assert (ran.code, ran.out) == (2, "")
    for way in ("chaos_events(rng)", "--input FILE", "--from-topic TOPIC"):
        assert way in ran.err
    assert not (tmp_path / ".semel").exists()


async def test_an_app_without_an_agent_is_refused(semel, tmp_path):
    (tmp_path / "orders.py").write_text("from semel import App\napp = App('orders')\n")

    ran = await semel("chaos", "orders:app")

    assert ran.code == 2
    assert "takes an App with one" in ran.err


async def test_options_that_cannot_be_meant_are_refused(semel, tmp_path):
    (tmp_path / "orders.py").write_text(PIPELINE.format(value=", value=str"))
    for arguments, says in (
        (("--faults", "kil"), "'kil' is no kind of fault"),
        (("--brokers", "2"), "1 broker, or 3"),
        (("--workers", "0"), "--workers"),
        (("--input", "none.jsonl"), "none.jsonl"),
        (("--input", "a", "--from-topic", "b"), "two sources"),
        (("--key", "{none}"), "'none'"),
        (("--key", "a", "--input", "b"), "those of --input have their keys"),
        (("--key", "a", "--from-topic", "b"), "those of --from-topic have their keys"),
    ):
        ran = await semel("chaos", "orders", *arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert says in ran.err, (arguments, ran.err)


async def test_a_key_beside_chaos_events_in_the_module_is_refused(semel, tmp_path):
    module = PIPELINE.format(value=", value=str") + "def chaos_events(rng):\n    yield 'a', 'b'\n"
    (tmp_path / "orders.py").write_text(module)

    ran = await semel("chaos", "orders", "--key", "id")

    assert (ran.code, ran.out) == (2, "")
    assert "--key 'id' is for made-up events, and chaos_events in orders gives each its key" in ran.err


async def test_a_topic_to_copy_from_needs_its_broker(semel, tmp_path):
    (tmp_path / "orders.py").write_text(PIPELINE.format(value=""))

    ran = await semel("chaos", "orders", "--from-topic", "there", "--broker", "127.0.0.1:1")

    assert ran.code == 3
