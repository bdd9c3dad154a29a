"""Faust's settings, one by one: each works, has nothing to act on and is named for it, or is refused."""

from __future__ import annotations

import logging
import ssl
import types
from pathlib import Path
from typing import Any

import faust as stock
import pytest
from mode import Service

from semel.cli import exits
from semel.config import Settings
from semel.errors import ConfigError, SemelError
from semel.faust_.app import App
from semel.faust_.settings import FORCED, SETTINGS, Does, pristine
from semel.faust_.stream import Stream
from semel.kafka import KafkaBroker
from semel.worker.engine_host import kafka_broker
from tests.unit.faust_.harness import Stage

BROKER = "kafka://127.0.0.1:29999"


class MyStream(stock.Stream):
    pass


# A value that asks for what is refused, for every setting that can be.
ASKS_FOR_MORE: dict[str, Any] = {
    "broker_consumer": "kafka://other:9092",
    "broker_producer": "kafka://other:9092",
    "ssl_context": ssl.create_default_context(),
    "producer_acks": 1,
    "reply_create_topic": True,
    "table_standby_replicas": 2,
    "topic_allow_declare": False,
    "web": "mine://",
    "web_application_options": {"client_max_size": 1},
    "web_cors_options": {"*": {}},
    "web_stats_enabled": True,
    "web_graph_enabled": True,
    "web_metrics_enabled": True,
    "web_in_thread": True,
    "web_ssl_context": ssl.create_default_context(),
    "web_transport": "unix:/tmp/x.sock",
    "Agent": stock.Agent,
    "ConsumerScheduler": types.SimpleNamespace,
    "Event": types.SimpleNamespace,
    "Schema": types.SimpleNamespace,
    "Stream": MyStream,
    "Table": types.SimpleNamespace,
    "SetTable": types.SimpleNamespace,
    "GlobalTable": types.SimpleNamespace,
    "SetGlobalTable": types.SimpleNamespace,
    "TableManager": types.SimpleNamespace,
    "PartitionAssignor": types.SimpleNamespace,
    "LeaderAssignor": types.SimpleNamespace,
    "Router": types.SimpleNamespace,
    "Topic": types.SimpleNamespace,
    "Monitor": types.SimpleNamespace,
}


def an_app(name: str = "shop", **options: Any) -> App:
    return App(name, broker=BROKER, **options)


def test_every_setting_of_faust_is_in_the_table_and_nothing_else() -> None:
    assert set(SETTINGS) == set(stock.Settings.SETTINGS)


def test_every_setting_that_is_refused_says_what_to_do_instead() -> None:
    refused = {name for name, rule in SETTINGS.items() if rule.does is Does.REFUSED}
    assert refused == set(ASKS_FOR_MORE)
    assert all(len(rule.message) > 10 for name, rule in SETTINGS.items() if name in refused)


@pytest.mark.parametrize("name", ASKS_FOR_MORE)
def test_a_refused_setting_ends_the_declaration(name: str) -> None:
    with pytest.raises(ConfigError, match=name) as refused:
        an_app(**{name: ASKS_FOR_MORE[name]})
    assert SETTINGS[name].message in str(refused.value)
    assert exits.code_of(refused.value) == exits.USAGE


@pytest.mark.parametrize("name", ASKS_FOR_MORE)
def test_a_refused_setting_given_later_ends_the_start(name: str) -> None:
    app = an_app()
    object.__setattr__(app.conf, name, ASKS_FOR_MORE[name])
    with pytest.raises(ConfigError, match=name):
        app.plan()


def test_a_refused_setting_of_a_configuration_module_or_a_variable_is_refused_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = an_app()
    with pytest.raises(ConfigError, match="reply_create_topic"):
        app.config_from_object({"reply_create_topic": True})
        app.plan()
    monkeypatch.setenv("PRODUCER_ACKS", "1")
    with pytest.raises(ConfigError, match="producer_acks"):
        an_app()


@pytest.mark.parametrize("name", [n for n, rule in SETTINGS.items() if rule.does is Does.MOOT and n not in FORCED])
def test_a_setting_without_effect_is_named_at_start(name: str, caplog: pytest.LogCaptureFixture) -> None:
    from semel.faust_.settings import say_moot

    app = an_app()
    vars(app.conf)[stock.Settings.SETTINGS[name].storage_name] = Path("something else")
    with caplog.at_level(logging.WARNING):
        say_moot(app.conf)
    assert name in caplog.text
    assert SETTINGS[name].message in caplog.text


def test_nothing_is_said_where_nothing_was_set(caplog: pytest.LogCaptureFixture) -> None:
    from semel.faust_.settings import say_moot

    with caplog.at_level(logging.WARNING):
        say_moot(an_app().conf)
    assert not caplog.text


# -- the broker, and how it is spoken to


def test_sasl_credentials_secure_every_connection() -> None:
    app = an_app(broker_credentials=stock.SASLCredentials(username="u", password="geheim", mechanism="SCRAM-SHA-256"))
    said = app.semel_settings.broker_security
    assert (said.protocol, said.sasl_mechanism, said.username) == ("SASL_PLAINTEXT", "SCRAM-SHA-256", "u")
    client: Any = kafka_broker(app.semel_settings, client_id="x")
    assert isinstance(client, KafkaBroker)
    assert client._client._options["sasl_plain_password"] == "geheim"
    assert "geheim" not in repr(app.semel_settings)


def test_credentials_given_after_the_declaration_are_used() -> None:
    app = an_app()
    app.conf.broker_credentials = stock.SASLCredentials(username="u", password="p")
    assert app._settings_at_start().broker_security.protocol == "SASL_PLAINTEXT"


@pytest.mark.parametrize(
    "given",
    [
        stock.SSLCredentials(ssl.create_default_context()),
        stock.SASLCredentials(username="u", password="p", ssl_context=ssl.create_default_context()),
        stock.SASLCredentials(username="u", password="p", mechanism="GSSAPI"),
        stock.SASLCredentials(username="u"),
        stock.GSSAPICredentials(),
        stock.OAuthCredentials(oauth_cb=None),  # type: ignore[arg-type]
    ],
    ids=lambda given: type(given).__name__,
)
def test_credentials_that_semel_does_not_speak_are_refused_and_never_plaintext(given: Any) -> None:
    with pytest.raises(ConfigError, match="broker_credentials"):
        an_app(broker_credentials=given)


def test_semels_own_security_stands_above_fausts_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PROTOCOL", "SASL_SSL"), ("SASL_MECHANISM", "PLAIN"), ("USERNAME", "v"), ("PASSWORD", "q")):
        monkeypatch.setenv(f"SEMEL_BROKER_SECURITY__{name}", value)
    app = an_app(broker_credentials=stock.SASLCredentials(username="u", password="p"))
    assert (app.semel_settings.broker_security.protocol, app.semel_settings.broker_security.username) == (
        "SASL_SSL",
        "v",
    )


def test_fausts_variable_for_the_broker_says_where_it_is_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no config/local.toml says another
    monkeypatch.setenv("BROKER_URL", "kafka://elsewhere:9092")
    app = App("shop")
    assert [url.scheme for url in app.conf.broker] == ["semel"]
    assert app.semel_settings.bootstrap == "elsewhere:9092"
    monkeypatch.setenv("SEMEL_BROKER", "kafka://here:9092")
    assert App("shop").semel_settings.bootstrap == "here:9092"


def test_semels_own_settings_for_the_broker_stand_above_fausts_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROKER_URL", "kafka://elsewhere:9092")
    assert App("shop", broker="kafka://keyword:9092").semel_settings.bootstrap == "elsewhere:9092"
    given = tmp_path / "given.toml"
    given.write_text('broker = "kafka://given:9092"')
    app = App("shop", broker="kafka://keyword:9092")
    app.use(Settings.load(given))
    assert app.semel_settings.bootstrap == "given:9092"
    app = App("shop")
    app.use(Settings.load(broker="kafka://option:9092"))
    assert app.semel_settings.bootstrap == "option:9092"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "local.toml").write_text('broker = "kafka://local:9092"')
    app = App("shop")
    assert app.semel_settings.bootstrap == "local:9092"
    app.use(Settings.load())
    assert app.semel_settings.bootstrap == "local:9092"


def test_a_token_and_a_file_with_one_are_ordered_and_no_contradiction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of the file " * 3)
    app = App("shop", web_token_file=str(tmp_path / "token"))
    assert token_of(app.semel_settings).startswith("of the file")
    monkeypatch.setenv("SEMEL_WEB_TOKEN", "of the variable")
    app.use(Settings.load())
    assert token_of(app.semel_settings) == "of the variable"
    assert token_of(app._settings_at_start()) == "of the variable"
    app = App("shop", web_token_file=str(tmp_path / "token"))  # as any keyword before a command has its say
    assert token_of(app.semel_settings).startswith("of the file")
    with pytest.raises(ConfigError, match="both set"):
        App("shop", web_token_file=str(tmp_path / "token"), web_token="of the keyword")


def token_of(settings: Settings) -> str:
    assert settings.web_token is not None
    return settings.web_token.get_secret_value()


def test_a_configuration_module_says_where_the_broker_is_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = App("shop")
    app.config_from_object({"broker": "kafka://elsewhere:9092", "processing_guarantee": "exactly_once"})
    assert [url.scheme for url in app.conf.broker] == ["semel"]
    assert app.semel_settings.bootstrap == "elsewhere:9092"
    assert not app.in_transaction


# -- what works by another name


@pytest.mark.parametrize(
    ("given", "ours", "value"),
    [
        ({"broker_session_timeout": 6.0}, "session_timeout_ms", 6000),
        ({"broker_rebalance_timeout": 90.0}, "rebalance_timeout_ms", 90_000),
        ({"broker_commit_interval": 0.5}, "commit_interval_ms", 500),
        ({"topic_replication_factor": 2}, "replication_factor", 2),
        ({"canonical_url": "http://shop-0:8080"}, "web_url", "http://shop-0:8080"),
        ({"web_host": "shop-0", "web_port": 8080}, "web_url", "http://shop-0:8080"),
        ({"web_port": 8080}, "web_port", 8080),
    ],
)
def test_a_setting_works_by_semels_name(given: dict[str, Any], ours: str, value: Any) -> None:
    assert getattr(an_app(**given).semel_settings, ours) == value


def test_semels_own_setting_stands_above_fausts() -> None:
    assert an_app(broker_session_timeout=6.0, session_timeout_ms=7000).semel_settings.session_timeout_ms == 7000


def test_a_timeout_that_contradicts_another_is_refused_where_it_is_declared() -> None:
    with pytest.raises(ConfigError, match="session_timeout_ms"):
        an_app(broker_session_timeout=2.0, transaction_timeout_ms=9000)


def test_a_bind_that_others_reach_needs_a_token_or_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="web_bind"):
        an_app(web_bind="0.0.0.0")
    app = an_app()
    app.conf.web_bind = "192.0.2.1"  # as `faust worker --web-bind` does
    with pytest.raises(ConfigError, match="web_bind"):
        app._settings_at_start()
    monkeypatch.setenv("WEB_BIND", "192.0.2.1")
    assert an_app(web_open=True).semel_settings.web_bind == "192.0.2.1"


def test_faust_workers_options_for_its_port_and_host_are_heard() -> None:
    app = an_app()
    app.conf.web_port, app.conf.web_host = 7070, "shop-0"
    settings = app._settings_at_start()
    assert (settings.web_port, settings.web_url) == (7070, "http://shop-0:7070")


def test_where_a_group_begins_is_heard() -> None:
    assert an_app().plan().start == "earliest"
    assert an_app(consumer_auto_offset_reset="latest").plan().start == "latest"
    assert an_app(start="earliest", consumer_auto_offset_reset="latest").plan().start == "earliest"
    with pytest.raises(ConfigError, match="consumer_auto_offset_reset"):
        an_app(consumer_auto_offset_reset="none")


def test_a_class_of_ones_own_may_inherit_from_semels() -> None:
    class Louder(Stream):
        pass

    assert an_app(Stream=Louder).conf.Stream is Louder


def test_what_an_app_was_declared_with_holds_under_semel_worker_where_nothing_else_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    app = an_app(commit_interval_ms=50, broker_credentials=stock.SASLCredentials(username="u", password="p"))
    app.use(Settings.load(commit_interval_ms=70, web_port=7071))
    said = app.semel_settings
    assert (said.commit_interval_ms, said.web_port, said.bootstrap) == (70, 7071, "127.0.0.1:29999")
    assert said.broker_security.username == "u"
    monkeypatch.setenv("SEMEL_BROKER", "kafka://deployed:9092")
    app.use(Settings.load())
    assert app.semel_settings.bootstrap == "deployed:9092"


def test_fausts_settings_of_the_file_that_a_worker_is_given_are_heard() -> None:
    app = an_app()
    app.use(Settings(faust={"topic_partitions": 3}))
    assert app.conf.topic_partitions == 3
    with pytest.raises(SemelError, match="reply_create_topic"):
        app.use(Settings(faust={"reply_create_topic": True}))


def test_faust_never_believes_in_its_own_data_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PROCESSING_GUARANTEE", "exactly_once"),
        ("APP_STORE", "memory://"),
        ("STREAM_WAIT_EMPTY", "1"),
    ):
        monkeypatch.setenv(name, value)
    conf = an_app().conf
    assert all(getattr(conf, name) != getattr(pristine(), name) for name in FORCED if name != "processing_guarantee")
    assert not an_app().in_transaction


async def test_a_client_id_and_a_compression_reach_the_connection(stage: Stage) -> None:
    stage.topic("orders")
    app = stage.app(broker_client_id="till-7", producer_compression_type="gzip")

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        async for _ in stream:
            pass

    await stage.running(await stage.start(app))
    assert stage.connections == [("till-7", "gzip")]
    with pytest.raises(ConfigError, match="brotli"):
        kafka_broker(app.semel_settings, client_id="x", compression="brotli")


def test_a_moot_setting_ends_no_start() -> None:
    app = App("moot-settings", broker=BROKER, autodiscover=False, producer_threaded=True, stream_publish_on_commit=True)
    started = app.boot_strategy.kafka_producer()
    assert app.producer in started and all(isinstance(service, Service) for service in started)


@pytest.mark.parametrize("name", ["broker_max_poll_record", "nonsense"])
def test_a_name_in_the_faust_section_that_faust_does_not_have_is_refused(name: str) -> None:
    settings = Settings(faust={name: 5})
    with pytest.raises(ConfigError, match=f"unknown setting '{name}' in \\[faust\\]"):
        App("p", settings=settings, autodiscover=False)


def test_a_keyword_of_an_app_that_nothing_reads_is_said(caplog: pytest.LogCaptureFixture) -> None:
    App("shop", broker="kafka://127.0.0.1:29999", broker_max_poll_record=5)
    assert "broker_max_poll_record= is no setting of Faust's or semel's" in caplog.text
    assert "did you mean broker_max_poll_records=?" in caplog.text
    caplog.clear()
    App(
        "shop",
        broker="kafka://127.0.0.1:29999",
        broker_max_poll_records=5,
        web_port=7001,
        handler_timeout_ms=9000,
        monitor=None,
    )
    assert "nothing reads it" not in caplog.text
