from __future__ import annotations

import logging
from pathlib import Path

import pytest
from aiokafka.protocol.admin import SaslAuthenticateRequest

from semel.errors import ConfigError
from semel.kafka import Security

SECRET = "correct horse"


def test_the_password_is_in_no_representation() -> None:
    security = Security("SASL_SSL", sasl_mechanism="PLAIN", username="u", password=SECRET)
    assert SECRET not in f"{security!r} {security}"
    assert "PLAIN" in repr(security)


def test_a_login_is_not_logged_where_all_else_of_aiokafka_is(caplog: pytest.LogCaptureFixture) -> None:
    Security("SASL_PLAINTEXT", sasl_mechanism="PLAIN", username="u", password=SECRET).connection_options()
    request = SaslAuthenticateRequest(f"\0u\0{SECRET}".encode()).prepare({36: (0, 1)})
    assert SECRET in repr(request)
    log = logging.getLogger("aiokafka.conn")
    with caplog.at_level(logging.DEBUG, logger="aiokafka.conn"):
        log.debug("%s Request %d: %s", "connection", 1, request)
        log.debug("%s Request %d: %s", "connection", 2, "another")
    assert "another" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "TLS"}, "protocol 'TLS' is unknown; use PLAINTEXT, SSL"),
        ({"protocol": "SASL_SSL", "username": "u", "password": "p"}, "sasl_mechanism None is unknown"),
        ({"protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "username": "u"}, "needs username and password"),
        ({"protocol": "SSL", "username": "u", "password": "p"}, "protocol SSL sends none; use SASL_SSL"),
        ({"ca_file": "ca.pem"}, "protocol PLAINTEXT has no TLS"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Security(**arguments)


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("missing.pem", "ca.pem"):
        with pytest.raises(ConfigError, match=f"cannot load ca_file .*{name}"):
            Security("SSL", ca_file=str(tmp_path / name)).connection_options()
