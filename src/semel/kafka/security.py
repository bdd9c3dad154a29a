"""How every connection is secured: TLS, SASL, and what of it may be seen."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field
from typing import Any

from aiokafka.protocol.admin import SaslAuthenticateRequest_v0, SaslAuthenticateRequest_v1

from semel.errors import ConfigError

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class Security:
    """Protocol and credentials of the broker's listener.

    Without `ca_file` the system's certificate authorities are trusted. The broker's name is always checked
    against its certificate. `key_file` may be left out where `cert_file` holds the key too.
    ConfigError where the parts contradict each other.
    """

    protocol: str = "PLAINTEXT"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    sasl_mechanism: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"broker_security.protocol {self.protocol!r} is unknown; use {', '.join(PROTOCOLS)}")
        if self.sasl:
            if self.sasl_mechanism not in MECHANISMS:
                raise ConfigError(
                    f"broker_security.sasl_mechanism {self.sasl_mechanism!r} is unknown; use {', '.join(MECHANISMS)}"
                )
            if self.username is None or self.password is None:
                raise ConfigError(f"broker_security.protocol {self.protocol} needs username and password")
        elif self.username is not None or self.password is not None or self.sasl_mechanism is not None:
            raise ConfigError(f"broker_security has credentials, but protocol {self.protocol} sends none; use SASL_SSL")
        if not self.tls and (self.ca_file or self.cert_file or self.key_file):
            raise ConfigError(f"broker_security has certificates, but protocol {self.protocol} has no TLS; use SSL")

    @property
    def tls(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def sasl(self) -> bool:
        return self.protocol.startswith("SASL_")

    def connection_options(self) -> dict[str, Any]:
        """Keywords of aiokafka's connection. ConfigError where a file cannot be read or is no certificate."""
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.tls:
            options["ssl_context"] = self._ssl_context()
        if self.sasl:
            _silence_credentials()
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = self.password
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:  # ssl.SSLError is one too
            raise ConfigError(
                f"broker_security: cannot load ca_file {self.ca_file!r}, cert_file {self.cert_file!r},"
                f" key_file {self.key_file!r}: {error}"
            ) from error
        return context


def _hides_credentials(record: logging.LogRecord) -> bool:
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(isinstance(a, SaslAuthenticateRequest_v0 | SaslAuthenticateRequest_v1) for a in arguments)


def _silence_credentials() -> None:
    # aiokafka logs each request at DEBUG, and a PLAIN authentication is the password in clear.
    logging.getLogger("aiokafka.conn").addFilter(_hides_credentials)
