"""Every setting of Faust, and what becomes of it on semel: it works, it has nothing to act on, or it is refused.

`SETTINGS` is the table; a test holds it against Faust's own list. What is refused ends the start with what to do instead.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUnknownLambdaType=false
from __future__ import annotations

import difflib
import functools
import inspect
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import faust
from faust.auth import SASLCredentials
from faust.types.auth import SASLMechanism
from yarl import URL

from semel.config import BrokerSecurity, Settings
from semel.errors import ConfigError, DeclarationError
from semel.faust_.rules import Does, Rule, moot, refused, works
from semel.plan import Start

log = logging.getLogger("semel.app")

SCHEME = "semel"


def _is_ours(value: Any) -> bool:
    """A class that semel's own engine runs: semel's, or one that inherits from it."""
    return any(c.__module__.startswith("semel.") for c in getattr(value, "__mro__", ()))


_OWN_CLASS = "inherit from semel's class of that name (semel.faust_), or leave it out"
_OWN_PAGES = "pages are served by semel's web server, beside its views; leave it out, or put a proxy before the worker"
_ENGINE = "the engine has its own way"
_CLIENT = "semel's own client of Kafka"

SETTINGS: dict[str, Rule] = {
    # -- common
    "autodiscover": works(),
    "datadir": works("the setting state_dir"),
    "tabledir": moot("rows live in the state directory"),
    "debug": works(),
    "env_prefix": works(),
    "id_format": works(),
    "origin": works(),
    "timezone": works(),
    "version": works("part of the app's id, hence of every name that semel keeps on Kafka"),
    # -- agents
    "agent_supervisor": moot("an agent does not crash: an event that fails is tried again, then dead-lettered"),
    "cython_optimizations": moot("the engine is semel's"),
    "blocking_timeout": moot("semel itself says which handler holds the event loop"),
    # -- broker
    "broker": works("the setting broker"),
    "broker_consumer": refused("semel reads and writes in one transaction, on one cluster; give broker"),
    "broker_producer": refused("semel reads and writes in one transaction, on one cluster; give broker"),
    "broker_api_version": moot("each broker is asked which versions it speaks"),
    "broker_check_crcs": moot("checksums are always checked"),
    "broker_client_id": works("the client id of every connection"),
    "broker_commit_every": moot(
        "a commit comes as soon as there is nothing else to do, at the latest after commit_interval_ms"
    ),
    "broker_commit_interval": works("the setting commit_interval_ms"),
    "broker_commit_livelock_soft_timeout": moot("an epoch that is not committed is undone and done again"),
    "broker_credentials": works("the settings [broker_security]: SASLCredentials with PLAIN or SCRAM; else refused"),
    "broker_heartbeat_interval": moot("a tenth of session_timeout_ms, at most a second"),
    "broker_max_poll_interval": moot(
        "a worker that handles an event for long stays in the group as long as it heartbeats"
    ),
    "broker_max_poll_records": moot("records are buffered within limits of semel's own"),
    "broker_rebalance_timeout": works("the setting rebalance_timeout_ms"),
    "broker_request_timeout": moot("the setting rpc_timeout_ms"),
    "broker_session_timeout": works("the setting session_timeout_ms"),
    "ssl_context": refused(
        'semel makes its TLS context itself; put protocol = "SSL" and ca_file, cert_file, key_file into [broker_security]'
    ),
    # -- consumer
    "consumer_api_version": moot("each broker is asked which versions it speaks"),
    "consumer_max_fetch_size": moot("records are buffered within limits of semel's own"),
    "consumer_auto_offset_reset": works('App(start="earliest") or "latest"; else refused'),
    "consumer_group_instance_id": works("the worker's --instance"),
    "consumer_metadata_max_age_ms": moot(_CLIENT),
    "consumer_connections_max_idle_ms": moot(_CLIENT),
    # -- serializing
    "key_serializer": works(),
    "value_serializer": works(),
    # -- logging
    "logging_config": works("with `faust worker`; `semel worker` logs in its own way"),
    "loghandlers": works("with `faust worker`; `semel worker` logs in its own way"),
    # -- producer
    "producer_acks": refused(
        "a transaction is acknowledged by all replicas, always; leave it out", lambda v: v in (-1, "-1", "all")
    ),
    "producer_api_version": moot("each broker is asked which versions it speaks"),
    "producer_compression_type": works("of every batch that is written; another than gzip needs cramjam"),
    "producer_linger": moot("an epoch is sent at its commit"),
    "producer_linger_ms": moot("an epoch is sent at its commit"),
    "producer_max_batch_size": moot("a batch is as large as its topic's max.message.bytes allows"),
    "producer_max_request_size": moot("what a topic's max.message.bytes does not allow fails its event"),
    "producer_partitioner": works("of what agents, timers and pages send; not of semel's own topics"),
    "producer_request_timeout": moot("the settings rpc_timeout_ms and commit_timeout_ms"),
    "producer_threaded": moot("what is sent becomes part of an epoch"),
    "producer_metadata_max_age_ms": moot(_CLIENT),
    "producer_connections_max_idle_ms": moot(_CLIENT),
    # -- agents that are asked
    "reply_create_topic": refused(
        "nobody reads replies on semel yet; leave it out, use cast() or send(), and read the answer from a topic or a table"
    ),
    "reply_expires": moot("replies are not read yet"),
    "reply_to": works("where ask_nowait lets its reply be sent"),
    "reply_to_prefix": works("where ask_nowait lets its reply be sent"),
    # -- streams
    "processing_guarantee": works("any value: semel's promise holds"),
    "stream_buffer_maxsize": moot("records are buffered within limits of semel's own"),
    "stream_processing_timeout": moot("the setting handler_timeout_ms"),
    "stream_publish_on_commit": moot("what an event sends is committed with it"),
    "stream_recovery_delay": moot(_ENGINE),
    "stream_wait_empty": moot("what is in hand is finished within drain_timeout_ms"),
    # -- tables
    "recovery_consistency_check": moot("positions and state are checked at every start"),
    "store": works("rocksdb:// only; memory:// is refused"),
    "store_check_exists": moot(_ENGINE),
    "crash_app_on_aerospike_exception": moot("there is no Aerospike store"),
    "aerospike_retries_on_exception": moot("there is no Aerospike store"),
    "aerospike_sleep_seconds_between_retries_on_exception": moot("there is no Aerospike store"),
    "table_cleanup_interval": moot("it is about windowed tables, which are refused"),
    "table_key_index_size": moot("it is about windowed tables, which are refused"),
    "table_standby_replicas": refused(
        "no standby is kept: a takeover restores from the changelog; leave it out", lambda v: v in (0, 1)
    ),
    # -- topics
    "topic_allow_declare": refused(
        "a worker creates the topics of its state; create them yourself beforehand, then none is created",
        lambda v: v is True,
    ),
    "topic_disable_leader": moot("the leader is the worker that runs task 0"),
    "topic_partitions": works("of output topics that semel creates; changelogs have the source's"),
    "topic_replication_factor": works("the setting replication_factor"),
    # -- web
    "cache": works(),
    "web": refused(_OWN_PAGES),
    "web_bind": works("the setting web_bind, 127.0.0.1 where nothing is said; another needs web_token or web_open"),
    "web_application_options": refused(_OWN_PAGES, lambda v: not v),
    "web_cors_options": refused(_OWN_PAGES, lambda v: not v),
    "web_enabled": works(),
    "web_stats_enabled": refused(
        "Faust's sensors see nothing on semel; see GET /pipelines and /metrics", lambda v: not v
    ),
    "web_graph_enabled": refused("see GET /pipelines", lambda v: not v),
    "web_router_enabled": moot("any worker answers GET /tables/{table}/{key} for any key"),
    "web_tables_enabled": moot("GET /tables/{table}"),
    "web_metrics_enabled": refused("Faust's sensors see nothing on semel; see GET /metrics", lambda v: not v),
    "web_host": works("the setting web_url"),
    "web_in_thread": refused(_OWN_PAGES, lambda v: not v),
    "web_port": works("the setting web_port"),
    "web_ssl_context": refused(_OWN_PAGES),
    "web_transport": refused(_OWN_PAGES),
    "canonical_url": works("the setting web_url"),
    # -- `faust worker`
    "worker_redirect_stdouts": works("with `faust worker`"),
    "worker_redirect_stdouts_level": works("with `faust worker`"),
    # -- classes
    "Agent": refused(_OWN_CLASS, _is_ours),
    "ConsumerScheduler": refused("semel's agents take partitions in turn; leave it out"),
    "Event": refused("semel makes its events itself; leave it out"),
    "Schema": refused(
        "key_type, value_type and serializers are what semel reads of a schema; register a codec instead"
    ),
    "Stream": refused(_OWN_CLASS, _is_ours),
    "Table": refused(_OWN_CLASS, _is_ours),
    "SetTable": refused("set tables do not run on semel yet; leave it out"),
    "GlobalTable": refused("global tables do not run on semel yet; leave it out"),
    "SetGlobalTable": refused("global tables do not run on semel yet; leave it out"),
    "TableManager": refused(_OWN_CLASS, _is_ours),
    "Serializers": works(),
    "Worker": works("with `faust worker`"),
    "PartitionAssignor": refused(
        "partition p of every topic goes to one worker, as semel's own assignor says; leave it out"
    ),
    "LeaderAssignor": refused("the leader is the worker that runs task 0; leave it out"),
    "Router": refused("any worker answers GET /tables/{table}/{key} for any key; leave it out"),
    "Topic": refused(_OWN_CLASS, _is_ours),
    "HttpClient": works(),
    "Monitor": refused("Faust's sensors see nothing on semel; see GET /metrics"),
    # -- deprecated in Faust
    "stream_ack_cancelled_tasks": moot("an event counts when its code is done"),
    "stream_ack_exceptions": moot("an event counts when its code is done"),
    "url": works("the setting broker"),
}

# What Faust is told, whatever it is asked for elsewhere: its own data plane never runs.
FORCED: dict[str, Any] = {
    "processing_guarantee": "at_least_once",
    "store": "rocksdb://",
    "topic_disable_leader": True,
    "stream_wait_empty": False,
    "web_router_enabled": False,
    "web_tables_enabled": False,
}


@functools.cache
def pristine() -> Any:
    """Faust's settings where nobody says anything."""
    return faust.Settings("semel", env={})


def _given(conf: Any) -> Iterator[tuple[str, Any, Rule]]:
    """The settings that somebody set, wherever: by keyword, variable, configuration module or later."""
    unset = pristine()
    derived = {
        "broker_consumer": conf.broker,
        "broker_producer": conf.broker,
        "canonical_url": URL(f"http://{conf.web_host}:{conf.web_port}"),
    }
    for name, rule in SETTINGS.items():
        value = _stored(conf, name)
        if rule.fine is _is_ours or (value not in (None, derived.get(name)) and value != _stored(unset, name)):
            yield name, value, rule


def _stored(conf: Any, name: str) -> Any:
    """As it was set: Faust's accessors add to some, and warn of others."""
    return vars(conf).get(faust.Settings.SETTINGS[name].storage_name)


def check(conf: Any) -> None:
    """ConfigError for the first setting that is refused."""
    for name, value, rule in _given(conf):
        if rule.does is Does.REFUSED and not rule.fine(value):
            raise ConfigError(f"Faust's setting {name}{_shown(name, value)} does not run on semel: {rule.message}")
    start_of(conf)
    security_of(conf)


def say_unknown(app: str, given: Iterable[str]) -> None:
    """A warning for keywords of `App` that nothing reads: Faust takes any, and some programs keep their own there."""
    known = {*SETTINGS, *inspect.signature(faust.App.__init__).parameters}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            log.warning("App(%r): %s= is no setting of Faust's or semel's, and nothing reads it%s", app, name,
                        f"; did you mean {near[0]}=?" if near else "")  # fmt: skip


def check_names(given: Iterable[str]) -> None:
    """ConfigError for a name in `[faust]` that is no setting of Faust's: nothing would ever read it."""
    for name in given:
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, n=1)
            raise ConfigError(
                f"unknown setting {name!r} in [faust]: Faust has none of that name"
                + (f"; the nearest is {near[0]!r}" if near else "")
            )


def say_moot(conf: Any) -> None:
    """One line that names what was set and has nothing to act on."""
    moot = [
        f"{name} ({rule.message})"
        for name, value, rule in _given(conf)
        if rule.does is Does.MOOT and value != FORCED.get(name, ...)
    ]
    if moot:
        log.warning("these settings of Faust have nothing to act on on semel: %s", "; ".join(moot))


def _shown(name: str, value: Any) -> str:
    return f"={value!r}" if isinstance(value, (str, int, float, bool)) and "url" not in name else ""


# -- what works by another name


def start_of(conf: Any) -> Start | None:
    """Where a group that has never committed begins, None where nobody says. ConfigError where that is neither end."""
    reset: Any = str(conf.consumer_auto_offset_reset)
    if reset not in ("earliest", "latest"):
        raise ConfigError(
            f"consumer_auto_offset_reset={reset!r} does not run on semel: where a group begins is said once, by 'earliest' or "
            "'latest'; a group that lost its place is refused anyway, until a person decides (`semel reset`)"
        )
    return None if reset == pristine().consumer_auto_offset_reset else reset


def client_id_of(conf: Any) -> str | None:
    client_id = str(conf.broker_client_id)
    return None if client_id == pristine().broker_client_id else client_id


def partitions_of(conf: Any) -> int | None:
    """Of output topics that are created and say nothing themselves; None: as many as the source."""
    partitions = int(conf.topic_partitions)
    return None if partitions == pristine().topic_partitions else partitions


_MECHANISMS = {
    SASLMechanism.PLAIN: "PLAIN",
    SASLMechanism.SCRAM_SHA_256: "SCRAM-SHA-256",
    SASLMechanism.SCRAM_SHA_512: "SCRAM-SHA-512",
}


def security_of(conf: Any) -> BrokerSecurity | None:
    """`broker_credentials` as [broker_security]. ConfigError for what semel's client does not speak: never plaintext."""
    given: Any = conf.broker_credentials
    if given is None:
        return None
    kind = type(given).__name__
    if not isinstance(given, SASLCredentials):
        raise ConfigError(
            f"broker_credentials of type {kind} do not run on semel: leave them out, and describe the connection in "
            '[broker_security]: protocol = "SSL" with ca_file, cert_file and key_file, or "SASL_SSL" with sasl_mechanism '
            "PLAIN or SCRAM, username and password_file"
        )
    if given.ssl_context is not None:
        raise ConfigError(
            "broker_credentials with an ssl_context do not run on semel, which makes its TLS context itself: leave them out, "
            'and put protocol = "SASL_SSL", sasl_mechanism, username, password_file and ca_file into [broker_security]'
        )
    mechanism = _MECHANISMS.get(SASLMechanism(given.mechanism))
    if mechanism is None:
        raise ConfigError(
            f"broker_credentials with mechanism {given.mechanism} do not run on semel; use {', '.join(_MECHANISMS.values())}"
        )
    if not given.username or not given.password:
        raise ConfigError("broker_credentials lack a username or a password; give both")
    return BrokerSecurity.model_validate(
        {
            "protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": mechanism,
            "username": given.username,
            "password": given.password,
        }
    )


def as_semels(conf: Any, settings: Settings) -> Settings:
    """`settings`, and what Faust's settings say where nobody set semel's own. ConfigError where that cannot be."""
    from_faust: dict[str, Any] = {}
    given = {name: value for name, value, _ in _given(conf)}
    for name, ours, unit in (
        ("broker_session_timeout", "session_timeout_ms", 1000),
        ("broker_rebalance_timeout", "rebalance_timeout_ms", 1000),
        ("broker_commit_interval", "commit_interval_ms", 1000),
        ("topic_replication_factor", "replication_factor", 1),
    ):
        if name in given:
            from_faust[ours] = int(float(given[name]) * unit)
    if "web_bind" in given:
        from_faust["web_bind"] = str(given["web_bind"])
    if "web_port" in given:
        from_faust["web_port"] = int(given["web_port"])
    if "canonical_url" in given or "web_host" in given:
        from_faust["web_url"] = str(conf.canonical_url)
    security = security_of(conf)
    if security is not None:
        from_faust["broker_security"] = security
    from_faust = {name: value for name, value in from_faust.items() if name not in settings.model_fields_set}
    return settings.replace(**from_faust) if from_faust else settings


def not_in_memory(what: str, store: Any) -> None:
    """DeclarationError for a store that forgets."""
    if store is not None and str(store).startswith("memory"):
        raise DeclarationError(
            f"{what}store={str(store)!r} would forget rows at a restart; leave store= out: rows are kept in RocksDB"
        )
