"""Settings: command line over `SEMEL_*` environment over TOML over defaults, checked before anything runs.

    settings = Settings.load(config, web_port=6067)

Every error is a `ConfigError` that names the setting, its value (never a secret's), where it was set and the next step.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import re
import socket
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from semel.errors import ConfigError
from semel.group.address import worker_url
from semel.runtime.timeouts import TIMEOUTS, derive_timeouts

log = logging.getLogger("semel.config")

DEFAULT_FILE = Path("config/local.toml")
DEFAULT_BROKER_PORT = 9092
PREFIX = "SEMEL_"
# 64 bits in hex: by trying, not in a lifetime.
TOKEN_CHARACTERS_MIN = 16

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
HeaderFamily = Literal["kip1191", "streams", "spring"]
Right = Literal["replay", "edit", "drop", "archive"]


class BrokerSecurity(BaseModel):
    """`[broker_security]`: how every client semel opens proves itself to the brokers. Never logged, never in a repr."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    protocol: SecurityProtocol = "PLAINTEXT"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    sasl_mechanism: SaslMechanism | None = None
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    _checked: bool = PrivateAttr(default=False)

    @field_validator("protocol", "sasl_mechanism", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self._checked:  # pydantic validates an instance again when it becomes part of Settings
            return self
        self._checked = True
        for name in ("ca_file", "cert_file", "key_file"):
            path = cast("Path | None", getattr(self, name))
            if path is not None and not path.is_file():
                raise ConfigError(f"broker_security.{name} = {str(path)!r} is not a readable file; correct the path")
        if self.protocol in ("PLAINTEXT", "SASL_PLAINTEXT") and (self.ca_file or self.cert_file or self.key_file):
            raise ConfigError(
                f"broker_security names certificate files, but protocol = {self.protocol!r} does not use them; "
                "set protocol to SSL or SASL_SSL"
            )
        if self.key_file and not self.cert_file:
            raise ConfigError("broker_security.key_file is set without cert_file; set both")
        password = _secret("broker_security.password", self.password, self.password_file)
        object.__setattr__(self, "password", password)
        _check_text("broker_security.username", self.username or "")
        sasl = self.protocol.startswith("SASL")
        if sasl and not (self.sasl_mechanism and self.username and password):
            raise ConfigError(
                f"broker_security.protocol = {self.protocol!r} needs sasl_mechanism, username, "
                "and password or password_file"
            )
        if not sasl and (self.sasl_mechanism or self.username or password):
            raise ConfigError(
                f"broker_security has credentials, but protocol = {self.protocol!r} does not use them; "
                "set protocol to SASL_SSL or SASL_PLAINTEXT"
            )
        return self


class WebOperator(BaseModel):
    """`[web_operators.NAME]`: who may act on dead letters in the web views, and how. The name stands in the audit."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    token: SecretStr | None = None
    token_file: Path | None = None
    rights: tuple[Right, ...] = ("replay",)

    def secret(self, name: str) -> str:
        """ConfigError where there is none, or a short one."""
        token = _secret(f"web_operators.{name}.token", self.token, self.token_file)
        if token is None or len(token.get_secret_value()) < TOKEN_CHARACTERS_MIN:
            raise ConfigError(
                f"web_operators.{name} needs a token (or token_file) of {TOKEN_CHARACTERS_MIN} characters or more; make one "
                "with: openssl rand -hex 32"
            )
        return token.get_secret_value()


class Settings(BaseSettings):
    """All settings of a worker; frozen. Times in milliseconds.

    `model_fields_set` holds the names somebody set; the others are defaults, derived so that the order of the
    timeouts holds (`derive_timeouts`). Raises `ConfigError`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    broker: str = "kafka://localhost:9092"
    state_dir: Path = Path(".semel/state")
    commit_interval_ms: int = Field(default=100, gt=0)
    session_timeout_ms: int = Field(default=10_000, gt=0)
    transaction_timeout_ms: int = Field(default=10_000, gt=0)
    rpc_timeout_ms: int = Field(default=2_000, gt=0)
    commit_timeout_ms: int = Field(default=5_000, gt=0)
    revoke_timeout_ms: int = Field(default=7_000, gt=0)
    rebalance_timeout_ms: int = Field(default=60_000, gt=0)
    max_block_ms: int = Field(default=300_000, ge=0)
    handler_timeout_ms: int = Field(default=5_000, gt=0)
    drain_timeout_ms: int = Field(default=30_000, gt=0)
    # One carried item is an output that waits for its commit: 10,000 of 1 kB are 10 MB, seconds of timers' work.
    carry_over_limit: int = Field(default=10_000, gt=0)
    parked_limit: int = Field(default=200_000, gt=0)
    parked_key_limit: int = Field(default=10_000, gt=0)
    halt_after: int = Field(default=10, ge=0)
    halted_timeout_ms: int = Field(default=0, ge=0)
    # Below, a partition's share holds no batch of a usual size, and an epoch no event of one.
    memory_budget_bytes: int | None = Field(default=None, ge=16 << 20)
    """None: a quarter of the memory there is, decided when a worker starts."""
    standbys: int = Field(default=0, ge=0)
    web_bind: str = "127.0.0.1"
    web_port: int = Field(default=6066, ge=0, le=65_535)
    web_url: str = ""
    """What other workers forward to. Empty only where `web_port` is 0: the server knows its port once it listens."""
    web_token: SecretStr | None = None
    web_token_file: Path | None = None
    web_open: bool = False
    inbox_url: SecretStr | None = None
    """Of the database that remembers effects, for `semel.once` and `semel inbox`. It may hold a password."""
    inbox_url_file: Path | None = None
    web_operators: dict[str, WebOperator] = Field(default_factory=dict[str, WebOperator], repr=False)
    """Who may act on dead letters in the web views. Empty: nobody but who is on this machine, where the bind is the loopback."""
    replication_factor: int | None = Field(default=None, gt=0)
    """None: 3 where the cluster has three brokers, else 1; decided when topics are created."""
    lineage: bool = True
    """Outputs carry a header that says which event they come from; `semel prove` needs it."""
    dead_letter_headers: Annotated[tuple[HeaderFamily, ...], NoDecode] = ("kip1191",)
    """Besides semel's own headers, in whose words dead letters say where they come from."""
    broker_security: BrokerSecurity = Field(default_factory=BrokerSecurity)
    faust: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Faust's own settings, as `App` takes them."""

    def __init__(self, _origins: Mapping[str, str] | None = None, **values: Any) -> None:
        origins = _variables(os.environ) if _origins is None else _origins
        try:
            super().__init__(**values)
        except ValidationError as invalid:
            raise ConfigError(_with_origins(_describe(invalid), origins)) from None
        except ConfigError as refused:
            raise ConfigError(_with_origins(str(refused), origins)) from None
        except SettingsError as malformed:
            raise _malformed(malformed) from None
        _warn_of_unknown_variables(os.environ)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls, init_settings())

    @classmethod
    def load(cls, config: Path | str | None = None, **overrides: Any) -> Self:
        """Read `config` (else `config/local.toml` where it is there) and the environment; `overrides` are the command
        line's, None for an option not given."""
        path = Path(config) if config is not None else DEFAULT_FILE
        table = read_toml(path) if config is not None or path.is_file() else {}
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            environment = _Environment(cls)()
        except SettingsError as malformed:
            raise _malformed(malformed) from None
        origins = dict.fromkeys(_paths(table), f"in {path}") | _variables(os.environ)
        in_force = {name: origin for name, origin in origins.items() if name.partition(".")[0] not in given}
        return cls(_origins=in_force, **_merged(_merged(table, environment), given))

    def replace(self, **changes: Any) -> Self:
        """The same settings with some set anew; what nobody set is derived again."""
        kept = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**(kept | changes))

    def below(self, above: Self) -> Self:
        """What was set here, and above it what was set in `above`: a secret also above the file that it would come from."""
        below, over = ({name: getattr(s, name) for name in s.model_fields_set} for s in (self, above))
        return type(self)(**_merged(below, over))

    @property
    def bootstrap(self) -> str:
        """The brokers as "host:port,host:port"."""
        return parse_broker(self.broker)

    @field_validator("broker")
    @classmethod
    def _broker(cls, value: str) -> str:
        parse_broker(value)
        return value

    @field_validator("dead_letter_headers", mode="before")
    @classmethod
    def _dead_letter_headers(cls, value: object) -> object:
        """A variable has them with commas between; "none", since an empty one counts as not set."""
        if isinstance(value, str):
            return () if value.strip() == "none" else tuple(name.strip() for name in value.split(","))
        return value

    @field_validator("web_url")
    @classmethod
    def _web_url(cls, value: str) -> str:
        url = worker_url(value)
        if url is None:
            raise ConfigError(
                "web_url must look like http://host:port, without user, password, query or fragment; correct it"
            )
        return url

    @model_validator(mode="after")
    def _derive(self) -> Self:
        given = {name: cast(int, getattr(self, name)) for name in TIMEOUTS if name in self.model_fields_set}
        derived: dict[str, object] = dict(derive_timeouts(given))
        token = _secret("web_token", self.web_token, self.web_token_file)
        derived["web_token"] = token
        derived["inbox_url"] = _secret("inbox_url", self.inbox_url, self.inbox_url_file)
        if token is not None and token.get_secret_value().strip() != token.get_secret_value():
            raise ConfigError(
                "web_token begins or ends with a blank, which no client can send in a header; remove it, or put the token into "
                "a file and name that by web_token_file, of which surrounding blanks are left out"
            )
        if not is_loopback(self.web_bind) and token is None and not self.web_open:
            raise ConfigError(
                f"web_bind = {self.web_bind!r} lets other machines read every table; "
                "set web_token (or web_token_file), or web_open = true if that is meant"
            )
        if token is not None and len(token.get_secret_value()) < TOKEN_CHARACTERS_MIN:
            short = (
                f"web_token is shorter than {TOKEN_CHARACTERS_MIN} characters, so that whoever reaches the port can find it "
                "by trying; make one with: openssl rand -hex 32"
            )
            if not is_loopback(self.web_bind):
                raise ConfigError(short)
            _warn_once("web_token", short)
        operators: dict[str, WebOperator] = {}
        tokens = {token.get_secret_value()} if token is not None else set[str]()
        for name, operator in self.web_operators.items():
            secret = operator.secret(name)
            if secret in tokens:
                raise ConfigError(
                    f"the token of web_operators.{name} is that of another one, or web_token; give each its own"
                )
            tokens.add(secret)
            operators[name] = WebOperator(token=SecretStr(secret), rights=operator.rights)
        derived["web_operators"] = operators
        if not self.web_url and self.web_port:
            derived["web_url"] = default_web_url(self.web_bind, self.web_port)
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        return self


# -- addresses


def parse_broker(value: str) -> str:
    """`kafka://h:p`, `semel://h:p` or `h:p,h:p` -> "h:p,h:p". Raises `ConfigError`, without the value if it has
    credentials."""
    if "@" in value:
        raise ConfigError("broker holds a user or password; put them into [broker_security] and leave host:port here")
    hosts: list[str] = []
    for part in re.split(r"[,;]", value):
        scheme, _, address = part.strip().rpartition("://")
        if scheme not in ("", "kafka", "semel"):
            raise ConfigError(f"broker = {value!r}: scheme {scheme}:// is unknown; write kafka://host:port")
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)(?::(\d{1,5}))?/?", address)
        port = int(match[2] or DEFAULT_BROKER_PORT) if match else 0
        if match is None or not 0 < port <= 65_535:
            raise ConfigError(f"broker = {value!r}: {part.strip()!r} is not host:port; write kafka://host:port")
        hosts.append(f"{match[1]}:{port}")
    return ",".join(hosts)


def default_web_url(bind: str, port: int) -> str:
    """How other workers reach a server on `bind`; a wildcard bind is reached by this machine's name."""
    host = socket.gethostname() if bind in ("0.0.0.0", "::", "") else bind
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return bind == "localhost"


# -- sources


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file. Raises `ConfigError`: unreadable, not TOML, or a key that is no setting."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"settings file {str(path)!r} is not there; correct --config") from None
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ConfigError(f"settings file {str(path)!r} cannot be read: {unreadable}") from None
    except tomllib.TOMLDecodeError as malformed:
        raise ConfigError(f"settings file {str(path)!r} is not TOML: {malformed}") from None
    for name, value in table.items():
        _known(name, Settings, f" in {path}", table=isinstance(value, dict))
        if name == "broker_security" and isinstance(value, dict):
            for inner in cast("dict[str, Any]", value):
                _known(inner, BrokerSecurity, f" in [broker_security] of {path}")
    return table


def _known(name: str, model: type[BaseModel], where: str, *, table: bool = False) -> None:
    if name in model.model_fields:
        return
    inner = [*BrokerSecurity.model_fields] if model is Settings and name in BrokerSecurity.model_fields else []
    if inner:
        raise ConfigError(f"unknown setting {name!r}{where}; it belongs under [broker_security]")
    if table:
        raise ConfigError(f"unknown section [{name}]{where}; settings stand at the top, without a section, and sections are "
                          "[broker_security], [web_operators.NAME] and [faust]")  # fmt: skip
    nearest = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.0)[0]
    raise ConfigError(f"unknown setting {name!r}{where}; the nearest known one is {nearest!r}")


def _malformed(error: SettingsError) -> ConfigError:
    """Only tables can be malformed: every other variable is taken as text."""
    field = re.search(r'field "(\w+)"', str(error))
    name = f"{PREFIX}{field[1].upper()}" if field else str(error)
    return ConfigError(f"{name} is no JSON: write a JSON object, or one variable a key, as in SEMEL_FAUST__ID")


def _paths(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted name of every value."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _paths(cast("Mapping[str, Any]", value), f"{above}{name}.")
        else:
            yield above + name


def _with_origins(message: str, origins: Mapping[str, str]) -> str:
    """The message, and where each setting that it names was set."""
    places = [
        f"{name} is set {origin}"
        for name, origin in sorted(origins.items())
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w|\.\w)", message)
    ]
    return f"{message} ({', '.join(places)})" if places else message


# Settings that may come from a file `{name}_file` instead, and that no message shows.
_SECRETS = ("password", "web_token", "token", "inbox_url")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`; tables are merged key by key, and a secret replaces the file it would else come from."""
    merged = dict(below)
    for secret in _SECRETS:
        for name, other in ((secret, f"{secret}_file"), (f"{secret}_file", secret)):
            if name in above and other not in above:
                merged.pop(other, None)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merged(cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", value))
        merged[name] = value
    return merged


def _secret(name: str, value: SecretStr | None, file: Path | None) -> SecretStr | None:
    if file is None:
        given = value.get_secret_value() if value is not None else ""
        if given and not given.strip():
            raise ConfigError(f"{name} is blank; write the secret into it")
        _check_text(name, given)
        return value if given else None
    if value is not None:
        raise ConfigError(f"{name} and {name}_file are both set; keep one")
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as unreadable:
        reason = unreadable.strerror if isinstance(unreadable, OSError) else "not UTF-8 text"
        raise ConfigError(f"{name}_file = {str(file)!r} cannot be read: {reason}") from None
    if not text:
        raise ConfigError(f"{name}_file = {str(file)!r} is empty; write the secret into it")
    _check_text(f"{name}_file = {str(file)!r}", text)
    return SecretStr(text)


def _check_text(name: str, given: str) -> None:
    """What no header and no login can carry, mostly copied along with the secret. ConfigError, without the text."""
    if any(unicodedata.category(c) == "Cc" for c in given):
        raise ConfigError(
            f"{name} has a line break or another control character in it; give the secret alone, in one line"
        )
    if any(unicodedata.category(c) == "Cs" for c in given):
        raise ConfigError(f"{name} is not UTF-8 text; give the secret as text")


# -- the environment

_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
# What Kubernetes sets in every container for each Service of the namespace.
_SERVICE_VARIABLE = re.compile(
    r"(?P<service>SEMEL\w*?)_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
# Read by others than the settings: failpoints, the local Kafka's cache, the tests, what says which code runs.
_ELSEWHERE = frozenset(
    {
        "SEMEL_FAILPOINT",
        "SEMEL_CLOCK_OFFSET_MS",
        "SEMEL_ODD_CODE",
        "SEMEL_CACHE_DIR",
        "SEMEL_TEST_BOOTSTRAP",
        "SEMEL_VERSION",
    }
)
_SECURITY = f"{PREFIX}BROKER_SECURITY"
# Whose names are anybody's.
_OPEN_TABLES = (f"{PREFIX}FAUST", f"{PREFIX}WEB_OPERATORS")
_warned: set[str] = set()


class _Environment(EnvSettingsSource):
    """The `SEMEL_*` variables that are settings, below what is `given`; what else begins like that is left out."""

    def __init__(self, settings_cls: type[BaseSettings], given: Mapping[str, Any] | None = None) -> None:
        super().__init__(settings_cls)
        self._given = given or {}

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        if _SERVICE_LINK.match(str(values.get("web_port", ""))):
            # Kubernetes sets `SEMEL_WEB_PORT=tcp://10.0.0.1:6066` where a Service is called semel-web.
            del values["web_port"]
        security = values.get("broker_security")
        if isinstance(security, dict):
            for name in os.environ:
                table, _, inner = name.lower().removeprefix(PREFIX.lower()).partition("__")
                if table == "broker_security" and inner not in BrokerSecurity.model_fields:
                    cast("dict[str, Any]", security).pop(inner, None)
        return _merged(values, self._given)


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Dotted name of each setting that a variable sets -> "by" that variable."""
    return {
        name.upper().removeprefix(PREFIX).lower().replace("__", "."): f"by {name}"
        for name, value in environ.items()
        if value and name.upper().startswith(PREFIX)
    }


_SECURES = "|".join(map(str.upper, BrokerSecurity.model_fields))
# `protocol` alone may be anybody's.
_FOR_SECURITY = re.compile(
    rf"{PREFIX}(BROKER_*SECURITY.*|SASL_.*|(\w*SECURITY_+|BROKER_+)({_SECURES})|(?!PROTOCOL)({_SECURES}))"
)


def _of_security(name: str) -> bool:
    """Whether an unknown variable was meant for `[broker_security]`, or for a field of it: it must not end in plaintext."""
    fields = [f"{_SECURITY}__{field.upper()}" for field in BrokerSecurity.model_fields]
    return (
        _FOR_SECURITY.fullmatch(name) is not None
        or bool(difflib.get_close_matches(name, fields, n=1, cutoff=0.85))
        or bool(difflib.get_close_matches(name.partition("__")[0], [_SECURITY], cutoff=0.92))
    )


def _warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    """A warning for each variable that is no setting. ConfigError for one that was to secure the connection."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    inside = {f"{_SECURITY}__{name.upper()}" for name in BrokerSecurity.model_fields}
    of_services: dict[str, list[str]] = {}
    for variable in sorted(environ):
        name = variable.upper()
        table = name.partition("__")[0]
        if service := _service(name, environ[variable]):
            of_services.setdefault(service, []).append(variable)
        elif not name.startswith(PREFIX) or name in known | inside | _ELSEWHERE or table in _OPEN_TABLES:
            continue
        else:
            near = difflib.get_close_matches(name, known | inside, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]}?" if near else "the settings are listed in the reference"
            if _of_security(name):
                raise ConfigError(
                    f"{variable} is not a setting of semel, and looks like one of [broker_security], without which the "
                    f"connection may be less secure than you mean: {hint}; correct or remove it"
                )
            _warn_once(name, f"{variable} is not a setting of semel and is ignored; {hint}")
    for service, variables in of_services.items():
        more = f" and {len(variables) - 1} more like it" if len(variables) > 1 else ""
        _warn_once(
            variables[0],
            f"{variables[0]}{more}, set by Kubernetes for the Service {service}, are no settings and are ignored; "
            "enableServiceLinks: false in the pod's spec keeps them away",
        )


def _service(name: str, value: str) -> str | None:
    """The Service that Kubernetes sets a variable for; None where it is not one of those."""
    match = _SERVICE_VARIABLE.fullmatch(name)
    if match is not None:
        service = match["service"]
    elif name.startswith(PREFIX) and name.endswith("_PORT") and _SERVICE_LINK.match(value):
        service = name.removesuffix("_PORT")
    else:
        return None
    return service.lower().replace("_", "-")


def _warn_once(name: str, message: str) -> None:
    if name not in _warned:
        _warned.add(name)
        log.warning("%s", message)


# -- what is wrong with a value, in one line


def _describe(invalid: ValidationError) -> str:
    lines: list[str] = []
    for error in invalid.errors(include_url=False, include_input=True):
        path = [str(step) for step in error["loc"]]
        name = ".".join(path)
        if error["type"] == "extra_forbidden":
            inside: dict[str, type[BaseModel]] = {"broker_security": BrokerSecurity, "web_operators": WebOperator}
            try:
                _known(path[-1], inside.get(path[0], Settings), f" in {path[0]}" if path[0] in inside else "")
            except ConfigError as unknown:
                lines.append(str(unknown))
            continue
        lines.append(f"{name}{_shown(path[-1], error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}")
    return "; ".join(lines)


def _shown(name: str, value: object) -> str:
    hidden = name in (*_SECRETS, "faust", "broker_security", "web_operators")
    if hidden or not isinstance(value, str | int | float):
        return ""
    return f" = {value!r}"
