import logging
import re
from pathlib import Path

import pytest

from semel import config
from semel.config import BrokerSecurity, Settings
from semel.errors import ConfigError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """No SEMEL_* variable, no config/local.toml, no warning given before."""
    for name in [n for n in config.os.environ if n.upper().startswith("SEMEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_warned", set())


def toml(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- defaults and precedence


def test_the_defaults_are_those_of_the_contract():
    settings = Settings.load()

    assert settings.model_dump(exclude={"broker_security", "state_dir"}) == {
        "broker": "kafka://localhost:9092",
        "commit_interval_ms": 100,
        "session_timeout_ms": 10_000,
        "transaction_timeout_ms": 10_000,
        "rpc_timeout_ms": 2_000,
        "commit_timeout_ms": 5_000,
        "revoke_timeout_ms": 7_000,
        "rebalance_timeout_ms": 60_000,
        "handler_timeout_ms": 5_000,
        "drain_timeout_ms": 30_000,
        "carry_over_limit": 10_000,
        "parked_limit": 200_000,
        "parked_key_limit": 10_000,
        "halt_after": 10,
        "halted_timeout_ms": 0,
        "max_block_ms": 300_000,
        "memory_budget_bytes": None,
        "standbys": 0,
        "web_bind": "127.0.0.1",
        "web_port": 6066,
        "web_url": "http://127.0.0.1:6066",
        "web_token": None,
        "web_token_file": None,
        "web_open": False,
        "web_operators": {},
        "inbox_url": None,
        "inbox_url_file": None,
        "replication_factor": None,
        "lineage": True,
        "dead_letter_headers": ("kip1191",),
        "faust": {},
    }
    assert settings.state_dir == Path(".semel/state")
    assert settings.broker_security == BrokerSecurity()
    assert settings.model_fields_set == set()


def test_the_command_line_wins_over_the_environment_over_toml_over_defaults(monkeypatch, tmp_path):
    file = toml(tmp_path / "x.toml", "web_port = 1\nstandbys = 1\ncommit_interval_ms = 1\n")
    monkeypatch.setenv("SEMEL_WEB_PORT", "2")
    monkeypatch.setenv("SEMEL_STANDBYS", "2")

    settings = Settings.load(file, web_port=3, standbys=None)

    assert (settings.web_port, settings.standbys, settings.commit_interval_ms) == (3, 2, 1)
    assert settings.handler_timeout_ms == 5_000


def test_config_local_toml_is_read_where_it_is_there_and_config_replaces_it(tmp_path):
    toml(tmp_path / "config/local.toml", "web_port = 1234")
    other = toml(tmp_path / "other.toml", "standbys = 1")

    assert Settings.load().web_port == 1234
    assert Settings.load(other).web_port == 6066


def test_a_table_is_merged_over_the_sources_key_by_key(monkeypatch, tmp_path):
    file = toml(tmp_path / "x.toml", "[faust]\nstream_wait_empty = false\ntopic_partitions = 4\n")
    monkeypatch.setenv("SEMEL_FAUST__TOPIC_PARTITIONS", "8")

    assert Settings.load(file).faust == {"stream_wait_empty": False, "topic_partitions": "8"}


def test_settings_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Settings().web_port = 1


def test_replace_keeps_what_was_set_and_derives_the_rest_again():
    settings = Settings(session_timeout_ms=6_000, web_port=7000).replace(session_timeout_ms=30_000)

    assert settings.transaction_timeout_ms == 10_000
    assert settings.web_url == "http://127.0.0.1:7000"
    assert settings.model_fields_set == {"session_timeout_ms", "web_port"}


# -- what is not a setting


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sesion_timeout_ms = 1", "unknown setting 'sesion_timeout_ms' in x.toml; the nearest known one is 'session_"),
        ("[semel]\nweb_port = 1", "unknown section [semel] in x.toml; settings stand at the top, without a section"),
        ("zzz = 1", "unknown setting 'zzz' in x.toml; the nearest known one is"),
        ("[broker_security]\nuser = 'u'", "unknown setting 'user' in [broker_security] of x.toml; .* is 'username'"),
        ("sasl_mechanism = 'PLAIN'", "'sasl_mechanism' in x.toml; it belongs under [broker_security]"),
        ("web_port = ", "settings file 'x.toml' is not TOML"),
        ("web_port = 'soon'", "web_port = 'soon': input should be a valid integer"),
        ("web_port = 70000", "web_port = 70000: input should be less than or equal to 65535"),
        ("standbys = -1", "standbys = -1: "),
        ("broker_security = 3", "broker_security: input should be a valid dictionary"),
        ("[broker_security]\nprotocol = 'TLS'", "broker_security.protocol = 'TLS': input should be 'PLAINTEXT', 'SSL'"),
    ],
)
def test_a_wrong_toml_says_what_and_where(text, says, tmp_path):
    toml(tmp_path / "x.toml", text)

    with pytest.raises(ConfigError, match=says.replace("[", r"\[")):
        Settings.load("x.toml")


def test_a_config_file_that_is_not_there_or_not_text_is_an_error(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match=r"'gone\.toml' is not there"):
        Settings.load("gone.toml")
    with pytest.raises(ConfigError, match=r"'binary\.toml' cannot be read"):
        Settings.load("binary.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Settings.load(tmp_path)


def test_an_unknown_keyword_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown setting 'web_prot'; the nearest known one is 'web_port'"):
        Settings(web_prot=1)


def test_an_unknown_variable_is_a_warning_given_once(monkeypatch, caplog):
    monkeypatch.setenv("SEMEL_ZZZ", "1")
    monkeypatch.setenv("SEMEL_WEB_PROT", "1")
    monkeypatch.setenv("SEMEL_FAUST__ID", "x")

    Settings()
    Settings()

    assert [r.getMessage().split()[0] for r in caplog.records] == ["SEMEL_WEB_PROT", "SEMEL_ZZZ"]
    assert "did you mean SEMEL_WEB_PORT?" in caplog.records[0].getMessage()
    assert "did you mean" not in caplog.records[1].getMessage()
    assert all(r.levelno == logging.WARNING for r in caplog.records)


def test_the_port_variable_that_kubernetes_injects_is_ignored(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SEMEL_WEB_PORT", "tcp://10.0.0.1:6066")

    assert Settings.load().web_port == 6066
    assert Settings.load(web_port=7).web_port == 7
    assert Settings.load(toml(tmp_path / "x.toml", "web_port = 8")).web_port == 8
    assert "set by Kubernetes" in caplog.text


def test_what_kubernetes_sets_for_a_service_is_ignored_with_one_warning_each(monkeypatch, caplog):
    for name in ("KAFKA_", ""):
        monkeypatch.setenv(f"SEMEL_{name}SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"SEMEL_{name}SERVICE_PORT", "9092")
        monkeypatch.setenv(f"SEMEL_{name}SERVICE_PORT_CLIENTS", "9092")
        monkeypatch.setenv(f"SEMEL_{name}PORT", "tcp://10.0.0.1:9092")
        monkeypatch.setenv(f"SEMEL_{name}PORT_9092_TCP", "tcp://10.0.0.1:9092")
        monkeypatch.setenv(f"SEMEL_{name}PORT_9092_TCP_ADDR", "10.0.0.1")

    for build in (Settings, Settings.load):
        assert build().broker == "kafka://localhost:9092"

    kafka, plain = sorted(r.getMessage() for r in caplog.records)
    assert kafka.startswith(
        "SEMEL_KAFKA_PORT and 5 more like it, set by Kubernetes for the Service semel-kafka, are no"
    )
    assert plain.startswith("SEMEL_PORT and 5 more like it, set by Kubernetes for the Service semel, are no settings")
    assert "enableServiceLinks: false" in kafka


@pytest.mark.parametrize("build", [Settings, Settings.load])
@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SEMEL_BROKER_SECURITY__PROTOCL", "SEMEL_BROKER_SECURITY__PROTOCOL"),
        ("SEMEL_BROKER_SECURITY__USERNAM", "SEMEL_BROKER_SECURITY__USERNAME"),
        ("semel_broker_security__protcol", "SEMEL_BROKER_SECURITY__PROTOCOL"),
        ("SEMEL_BROKER_SECURITY_PROTOCOL", "SEMEL_BROKER_SECURITY__PROTOCOL"),
        ("SEMEL_BROKER_SECURTY__PROTOCOL", "SEMEL_BROKER_SECURITY__PROTOCOL"),
        ("SEMEL_BROKERSECURITY__PROTOCOL", "SEMEL_BROKER_SECURITY__PROTOCOL"),
        ("SEMEL_SECURITY__PROTOCOL", "SEMEL_BROKER_SECURITY__PROTOCOL"),
        ("SEMEL_BROKER_SECURITY__X", "SEMEL_BROKER_SECURITY"),
        ("SEMEL_BROKER_SECURTY", "SEMEL_BROKER_SECURITY"),
        ("SEMEL_SASL_MECHANISM", ""),
        ("SEMEL_BROKER_PASSWORD", "SEMEL_BROKER_SECURITY__PASSWORD"),
        ("SEMEL_KAFKA_SECURITY_PROTOCOL", "SEMEL_BROKER_SECURITY__PROTOCOL"),
        ("SEMEL_PASSWORD", ""),
        ("SEMEL_CA_FILE", ""),
    ],
)
def test_a_mistyped_variable_that_was_to_secure_the_connection_is_refused(build, variable, meant, monkeypatch):
    monkeypatch.setenv(variable, "SASL_SSL")

    with pytest.raises(ConfigError, match=f"{variable} is not a setting of semel, and looks like one of") as refused:
        build()

    assert (f"did you mean {meant}?" if meant else "listed in the reference; correct or remove it") in str(
        refused.value
    )
    assert "SASL_SSL" not in str(refused.value)


@pytest.mark.parametrize(
    "variable",
    [
        "SEMEL_TLS_SECRET_NAME",
        "SEMEL_SECURITY_CONTEXT",
        "SEMEL_POD_SECURITY_POLICY",
        "SEMEL_PROTOCOL",
        "SEMEL_DB_PASSWORD",
        "SEMEL_SSL_CA",
        "SEMEL_BROKER_SECRET_NAME",
        "SEMEL_BROKER_TLS_SECRET",
    ],
)
def test_a_variable_that_only_speaks_of_security_is_a_warning(variable, monkeypatch, caplog):
    monkeypatch.setenv(variable, "x")

    assert Settings.load().broker_security.protocol == "PLAINTEXT"
    assert f"{variable} is not a setting of semel and is ignored" in caplog.text


def test_a_table_that_was_to_secure_the_connection_is_refused_under_another_name(tmp_path):
    for text in (
        "[broker_securty]",
        "[security]",
        "[Broker_Security]",
        "[broker_security]\nprotcol='SSL'",
        "[broker.security]",
    ):
        path = toml(tmp_path / "x.toml", text if "=" in text else f"{text}\nprotocol = 'SSL'")
        with pytest.raises(ConfigError):
            Settings.load(path)


def test_what_kubernetes_sets_for_a_service_that_is_called_like_a_table_is_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("SEMEL_BROKER_SECURITY_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("SEMEL_BROKER_SECURITY_PORT", "tcp://10.0.0.1:9092")

    assert Settings().broker_security.protocol == "PLAINTEXT"
    assert "set by Kubernetes for the Service semel-broker-security" in caplog.text


def test_a_mistyped_variable_of_another_setting_is_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("SEMEL_WEB_PORT__X", "1")

    for build in (Settings, Settings.load):
        build()

    [scalar] = (r.getMessage() for r in caplog.records)
    assert scalar.startswith("SEMEL_WEB_PORT__X is not a setting")


def test_an_unknown_key_in_the_json_of_a_variable_is_an_error_as_in_a_file(monkeypatch):
    monkeypatch.setenv("SEMEL_BROKER_SECURITY", '{"usernam": "u"}')

    with pytest.raises(ConfigError, match="'usernam' in broker_security; the nearest known one is 'username'"):
        Settings.load()


# -- where a wrong value was set


@pytest.mark.parametrize("build", [Settings, Settings.load])
def test_a_wrong_value_names_the_variable_it_came_from(build, monkeypatch):
    monkeypatch.setenv("SEMEL_COMMIT_INTERVAL_MS", "abc")
    monkeypatch.setenv("SEMEL_BROKER_SECURITY__PROTOCOL", "TLS")
    monkeypatch.setenv("SEMEL_STANDBYS", "1")

    with pytest.raises(ConfigError, match="commit_interval_ms = 'abc': input should be a valid integer") as refused:
        build()

    assert str(refused.value).endswith(
        "(broker_security.protocol is set by SEMEL_BROKER_SECURITY__PROTOCOL, "
        "commit_interval_ms is set by SEMEL_COMMIT_INTERVAL_MS)"
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("commit_interval_ms = 'abc'", "commit_interval_ms"),
        ("broker = 'foo:bar'", "broker"),
        ("web_token_file = 'gone'", "web_token_file"),
        ("[broker_security]\nprotocol = 'TLS'", "broker_security.protocol"),
    ],
)
def test_a_wrong_value_names_the_file_it_came_from(text, name, tmp_path):
    toml(tmp_path / "config/local.toml", f"standbys = 1\n{text}")

    with pytest.raises(ConfigError) as refused:
        Settings.load()

    assert str(refused.value).endswith(f" ({name} is set in config/local.toml)")


def test_what_wins_is_what_is_named(monkeypatch, tmp_path):
    toml(tmp_path / "config/local.toml", "web_port = 'x'\nstandbys = 'x'")
    monkeypatch.setenv("SEMEL_STANDBYS", "y")

    with pytest.raises(ConfigError) as refused:
        Settings.load(web_port=-1)

    assert "web_port = -1" in str(refused.value)
    assert str(refused.value).endswith("(standbys is set by SEMEL_STANDBYS)")


def test_a_table_in_a_variable_must_be_json(monkeypatch):
    monkeypatch.setenv("SEMEL_FAUST", "not json")

    for build in (Settings, Settings.load):
        with pytest.raises(ConfigError, match="SEMEL_FAUST is no JSON: write a JSON object"):
            build()


# -- the broker


@pytest.mark.parametrize(
    ("value", "bootstrap"),
    [
        ("kafka://h:1", "h:1"),
        ("semel://h:1", "h:1"),
        ("a:1,b:2", "a:1,b:2"),
        ("kafka://a:1,b:2", "a:1,b:2"),
        ("kafka://a:1;kafka://b", "a:1,b:9092"),
        ("[::1]:9", "[::1]:9"),
    ],
)
def test_the_broker_is_read_in_each_of_its_spellings(value, bootstrap):
    assert Settings(broker=value).bootstrap == bootstrap


@pytest.mark.parametrize("value", ["", "kafka://", "h:0", "h:70000", "a:1,,b:2", "http://h:1", "h:1/x", "h h:1"])
def test_a_broker_that_is_no_address_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"broker = .*write kafka://host:port"):
        Settings(broker=value)


def test_credentials_in_the_broker_are_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="broker_security") as refused:
        Settings(broker="kafka://user:hunter2@h:1")

    assert "hunter2" not in str(refused.value)


# -- the order of the timeouts


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize(
    ("low", "relation", "high"),
    [
        ("rpc_timeout_ms", "below", "commit_timeout_ms"),
        ("rpc_timeout_ms", "below", "revoke_timeout_ms"),
        ("rpc_timeout_ms", "below", "rebalance_timeout_ms"),
        ("rpc_timeout_ms", "below", "transaction_timeout_ms"),
        ("rpc_timeout_ms", "below", "session_timeout_ms"),
        ("commit_timeout_ms", "below", "revoke_timeout_ms"),
        ("commit_timeout_ms", "below", "rebalance_timeout_ms"),
        ("commit_timeout_ms", "below", "transaction_timeout_ms"),
        ("commit_timeout_ms", "below", "session_timeout_ms"),
        ("revoke_timeout_ms", "below", "rebalance_timeout_ms"),
        ("transaction_timeout_ms", "at most", "session_timeout_ms"),
    ],
)
def test_each_pair_of_timeouts_out_of_order_has_its_error(low, relation, high, excess, monkeypatch):
    monkeypatch.setenv(f"SEMEL_{low.upper()}", str(4_000 + excess))
    monkeypatch.setenv(f"SEMEL_{high.upper()}", "4000")

    if relation == "at most" and not excess:
        assert Settings.load().transaction_timeout_ms == 4_000
        return
    with pytest.raises(ConfigError) as refused:
        Settings.load()
    assert str(refused.value) == (
        f"{low} = {4_000 + excess} must be {relation} {high} = 4000: lower {low} or raise {high}, "
        "or leave one unset and its default follows the other "
        f"({', '.join(f'{name} is set by SEMEL_{name.upper()}' for name in sorted([low, high]))})"
    )


def test_equal_transaction_and_session_timeouts_are_fine():
    assert Settings(transaction_timeout_ms=9000, session_timeout_ms=9000).transaction_timeout_ms == 9000


# -- the web


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_a_bind_that_others_reach_needs_a_token_or_the_word_open(bind):
    with pytest.raises(ConfigError, match=f"web_bind = '{bind}'.*web_token.*web_open"):
        Settings(web_bind=bind)

    assert Settings(web_bind=bind, web_open=True).web_bind == bind
    assert Settings(web_bind=bind, web_token="t" * 16).web_bind == bind


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_bind_needs_no_token(bind):
    assert Settings(web_bind=bind).web_bind == bind


def test_an_empty_token_is_no_token():
    with pytest.raises(ConfigError, match="web_token"):
        Settings(web_bind="0.0.0.0", web_token="")


@pytest.mark.parametrize("token", ["x", "s3cr3t", "t" * 15])
def test_a_token_that_can_be_found_by_trying_is_refused_where_others_can_try(token, caplog, monkeypatch):
    monkeypatch.setattr("semel.config._warned", set())
    with pytest.raises(ConfigError, match=r"web_token is shorter than 16 characters.*openssl rand") as refused:
        Settings(web_bind="0.0.0.0", web_token=token)
    assert repr(token) not in str(refused.value)
    assert Settings(web_token=token).web_token is not None
    assert "shorter than 16" in caplog.text


@pytest.mark.parametrize("token", [" ", "\t" * 20])
def test_a_token_of_blanks_is_none(token):
    with pytest.raises(ConfigError, match="web_token is blank"):
        Settings(web_token=token)


@pytest.mark.parametrize(
    "token", [f"{'t' * 20}\n", f" {'t' * 20}", f"{'t' * 20}\t", f"{'t' * 20}\n{'u' * 20}", "t" * 20 + "\udcff"]
)
def test_a_token_that_no_header_can_carry_is_refused_without_being_said(token):
    with pytest.raises(
        ConfigError, match=r"^web_token (has a line break|begins or ends with a blank|is not UTF-8)"
    ) as refused:
        Settings(web_token=token)
    assert "ttt" not in str(refused.value)


@pytest.mark.parametrize("field", ["username", "password"])
def test_a_login_with_a_line_break_is_refused_without_being_said(field):
    with pytest.raises(ConfigError, match=rf"^broker_security\.{field} has a line break") as refused:
        Settings(broker_security=SASL | {"password": "hunter2", field: "hunter3\n"})
    assert "hunter" not in str(refused.value)


def test_a_password_may_end_with_a_blank():
    settings = Settings(broker_security=SASL | {"password": "hunter2 "})
    assert settings.broker_security.password.get_secret_value() == "hunter2 "


def test_what_surrounds_a_secret_in_its_file_is_left_out_and_several_lines_are_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(f"\n  {'t' * 20} \r\n")
    assert Settings(web_token_file=secret).web_token.get_secret_value() == "t" * 20
    secret.write_text(f"{'t' * 20}\n{'u' * 20}\n")
    with pytest.raises(ConfigError, match=r"web_token_file = .* has a line break"):
        Settings(web_token_file=secret)


def test_the_web_url_follows_bind_and_port_and_one_that_is_set_wins(monkeypatch):
    monkeypatch.setattr(config.socket, "gethostname", lambda: "pod-3")

    assert Settings(web_bind="0.0.0.0", web_open=True).web_url == "http://pod-3:6066"
    assert Settings(web_bind="::1", web_port=80).web_url == "http://[::1]:80"
    assert Settings(web_port=0).web_url == ""
    assert Settings(web_url="https://a.example/").web_url == "https://a.example"


@pytest.mark.parametrize("url", ["a.example:80", "ftp://a", "http://", "http://u:hunter2@h"])
def test_a_web_url_that_no_worker_could_forward_to_is_refused(url):
    with pytest.raises(ConfigError, match="web_url must look like") as refused:
        Settings(web_url=url)

    assert "hunter2" not in str(refused.value)


# -- secrets

SASL = {"protocol": "sasl_plaintext", "sasl_mechanism": "scram-sha-256", "username": "u"}


def test_no_secret_is_in_any_repr(tmp_path):
    settings = Settings(
        web_token="hunter2", broker_security=SASL | {"password": "hunter2"}, faust={"broker_credentials": "hunter2"}
    )

    assert "hunter2" not in repr(settings) + str(settings) + repr(settings.broker_security)
    assert settings.web_token.get_secret_value() == "hunter2"
    assert settings.broker_security.password.get_secret_value() == "hunter2"
    assert settings.broker_security.protocol == "SASL_PLAINTEXT"
    assert settings.broker_security.sasl_mechanism == "SCRAM-SHA-256"


def test_secrets_are_read_from_files_without_the_line_end(tmp_path):
    (tmp_path / "secret").write_text("hunter2\n")

    settings = Settings(web_token_file="secret", broker_security=SASL | {"password_file": "secret"})

    assert settings.web_token.get_secret_value() == "hunter2"
    assert settings.broker_security.password.get_secret_value() == "hunter2"
    assert settings.replace(web_port=1).web_token.get_secret_value() == "hunter2"


def test_a_secret_in_the_environment_replaces_the_file_of_the_toml(monkeypatch, tmp_path):
    file = toml(
        tmp_path / "x.toml",
        "web_token_file = 'gone'\n[broker_security]\nprotocol = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\n"
        "username = 'u'\npassword_file = 'gone'\n",
    )
    monkeypatch.setenv("SEMEL_WEB_TOKEN", "one")
    monkeypatch.setenv("SEMEL_BROKER_SECURITY__PASSWORD", "two")

    settings = Settings.load(file)

    assert settings.web_token.get_secret_value() == "one"
    assert settings.broker_security.password.get_secret_value() == "two"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"web_token": "hunter2", "web_token_file": "f"}, "web_token and web_token_file are both set"),
        ({"web_token_file": "gone"}, "web_token_file = 'gone' cannot be read: No such file"),
        ({"web_token_file": "empty"}, "web_token_file = 'empty' is empty"),
        ({"broker_security": {"protocol": "SASL_SSL", "username": "u", "password": "hunter2"}}, "needs sasl_mechanism"),
        ({"broker_security": {"username": "u", "password": "hunter2"}}, "protocol = 'PLAINTEXT' does not use them"),
        ({"broker_security": {"protocol": "SSL", "ca_file": "gone"}}, r"broker_security.ca_file = 'gone' is not a"),
        ({"broker_security": {"ca_file": "empty"}}, "protocol = 'PLAINTEXT' does not use them"),
        ({"broker_security": {"protocol": "SSL", "key_file": "empty"}}, "key_file is set without cert_file"),
        ({"broker_security": {"pasword": "hunter2"}}, "'pasword' in broker_security; the nearest known one is 'pass"),
        ({"web_token": ["hunter2"]}, "web_token: input should be a valid string"),
    ],
)
def test_a_broken_secret_is_explained_without_its_value(values, says, tmp_path):
    (tmp_path / "empty").write_text("\n")

    with pytest.raises(ConfigError, match=says) as refused:
        Settings(**values)

    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("variable", "names"), [("kip1191, spring", ("kip1191", "spring")), ("none", ()), ("streams", ("streams",))]
)
def test_the_words_of_dead_letters_are_a_list_also_in_a_variable(
    variable: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMEL_DEAD_LETTER_HEADERS", variable)
    assert Settings.load().dead_letter_headers == names


def test_words_of_dead_letters_that_nobody_speaks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dead_letter_headers.*'spong'"):
        Settings(dead_letter_headers=["spong"])


# -- who may act


def test_operators_come_from_a_file_or_the_environment_and_their_tokens_are_never_shown(tmp_path, monkeypatch):
    (tmp_path / "ada").write_text("a" * 20 + "\n")
    file = toml(tmp_path / "x.toml", f"[web_operators.ada]\ntoken_file = '{tmp_path}/ada'\nrights = ['edit', 'drop']\n")
    monkeypatch.setenv("SEMEL_WEB_OPERATORS__BOB__TOKEN", "b" * 20)

    settings = Settings.load(file)

    assert {name: (o.secret(name), o.rights) for name, o in settings.web_operators.items()} == {
        "ada": ("a" * 20, ("edit", "drop")), "bob": ("b" * 20, ("replay",))
    }  # fmt: skip
    assert "aaaa" not in repr(settings) and "aaaa" not in str(settings.web_operators)
    assert settings.replace(web_port=0).web_operators == settings.web_operators


@pytest.mark.parametrize(
    ("operators", "said"),
    [
        ({"ada": {}}, "web_operators.ada needs a token"),
        ({"ada": {"token": "short"}}, "16 characters"),
        ({"ada": {"token": "a" * 20}, "bob": {"token": "a" * 20}}, "web_operators.bob is that of another"),
        ({"ada": {"token": "t" * 20}}, "web_token"),
        ({"ada": {"token": "a" * 20, "rights": ["everything"]}}, "rights"),
        ({"ada": {"tokn": "a" * 20}}, "nearest known one is 'token'"),
    ],
)
def test_an_operator_that_cannot_be_meant_is_refused_without_its_token(operators, said):
    with pytest.raises(ConfigError, match=said) as refused:
        Settings(web_operators=operators, web_token="t" * 20)
    assert not re.search("aaaa|tttt|short'", str(refused.value))
