"""Every setting of Faust, and what becomes of it on semel: it works, it has nothing to act on, or it is refused.

`SETTINGS` is the table; a test holds it against Faust's own list. What is refused ends the start with what to do instead.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUnknownLambdaType=false
from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import faust
from faust.auth import SASLCredentials
from faust.types.auth import SASLMechanism
from yarl import URL

from semel.config import BrokerSecurity, Settings
from semel.errors import ConfigError, DeclarationError
from semel.plan import Start

log = logging.getLogger("semel.app")

SCHEME = "semel"


class Does(Enum):
    WORKS = "works"
    MOOT = "has nothing to act on"
    REFUSED = "refused"


class Rule(NamedTuple):
    """`said`: as what it works, what stands in its place, or what to do instead. `fine`: values that ask for nothing
    that is refused."""

    does: Does
    said: str
    fine: Callable[[Any], bool] = lambda value: False


def _works(said: str = "as in Faust", fine: Callable[[Any], bool] | None = None) -> Rule:
    return Rule(Does.WORKS, said) if fine is None else Rule(Does.WORKS, said, fine)


def _moot(said: str) -> Rule:
    return Rule(Does.MOOT, said)


def _refused(said: str, fine: Callable[[Any], bool] = lambda value: False) -> Rule:
    return Rule(Does.REFUSED, said, fine)


def _is_ours(value: Any) -> bool:
    """A class that semel's own engine runs: semel's, or one that inherits from it."""
    return any(c.__module__.startswith("semel.") for c in getattr(value, "__mro__", ()))


_OWN_CLASS = "inherit from semel's class of that name (semel.faust_), or leave it out"
_OWN_PAGES = "pages are served by semel's web server, beside its views; leave it out, or put a proxy before the worker"
_ENGINE = "the engine has its own way"
_CLIENT = "semel's own client of Kafka"

SETTINGS: dict[str, Rule] = {
    # -- common
    "autodiscover": _works(),
    "datadir": _works("the setting state_dir"),
    "tabledir": _moot("rows live in the state directory"),
    "debug": _works(),
    "env_prefix": _works(),
    "id_format": _works(),
    "origin": _works(),
    "timezone": _works(),
    "version": _works("part of the app's id, hence of every name that semel keeps on Kafka"),
    # -- agents
    "agent_supervisor": _moot("an agent does not crash: an event that fails is tried again, then dead-lettered"),
    "cython_optimizations": _moot("the engine is semel's"),
    "blocking_timeout": _moot("semel itself says which handler holds the event loop"),
    # -- broker
    "broker": _works("the setting broker"),
    "broker_consumer": _refused("semel reads and writes in one transaction, on one cluster; give broker"),
    "broker_producer": _refused("semel reads and writes in one transaction, on one cluster; give broker"),
    "broker_api_version": _moot("each broker is asked which versions it speaks"),
    "broker_check_crcs": _moot("checksums are always checked"),
    "broker_client_id": _works("the client id of every connection"),
    "broker_commit_every": _moot(
        "a commit comes as soon as there is nothing else to do, at the latest after commit_interval_ms"
    ),
    "broker_commit_interval": _works("the setting commit_interval_ms"),
    "broker_commit_livelock_soft_timeout": _moot("an epoch that is not committed is undone and done again"),
    "broker_credentials": _works("the settings [broker_security]: SASLCredentials with PLAIN or SCRAM; else refused"),
    "broker_heartbeat_interval": _moot("a tenth of session_timeout_ms, at most a second"),
    "broker_max_poll_interval": _moot(
        "a worker that handles an event for long stays in the group as long as it heartbeats"
    ),
    "broker_max_poll_records": _moot("records are buffered within limits of semel's own"),
    "broker_rebalance_timeout": _works("the setting rebalance_timeout_ms"),
    "broker_request_timeout": _moot("the setting rpc_timeout_ms"),
    "broker_session_timeout": _works("the setting session_timeout_ms"),
    "ssl_context": _refused(
        'semel makes its TLS context itself; put protocol = "SSL" and ca_file, cert_file, key_file into [broker_security]'
    ),
    # -- consumer
    "consumer_api_version": _moot("each broker is asked which versions it speaks"),
    "consumer_max_fetch_size": _moot("records are buffered within limits of semel's own"),
    "consumer_auto_offset_reset": _works('App(start="earliest") or "latest"; else refused'),
    "consumer_group_instance_id": _works("the worker's --instance"),
    "consumer_metadata_max_age_ms": _moot(_CLIENT),
    "consumer_connections_max_idle_ms": _moot(_CLIENT),
    # -- serializing
    "key_serializer": _works(),
    "value_serializer": _works(),
    # -- logging
    "logging_config": _works("with `faust worker`; `semel worker` logs in its own way"),
    "loghandlers": _works("with `faust worker`; `semel worker` logs in its own way"),
    # -- producer
    "producer_acks": _refused(
        "a transaction is acknowledged by all replicas, always; leave it out", lambda v: v in (-1, "-1", "all")
    ),
    "producer_api_version": _moot("each broker is asked which versions it speaks"),
    "producer_compression_type": _refused(
        "batches are written uncompressed; leave it out, and set compression.type on the topic: the broker compresses then",
        lambda v: v in (None, "none"),
    ),
    "producer_linger": _moot("an epoch is sent at its commit"),
    "producer_linger_ms": _moot("an epoch is sent at its commit"),
    "producer_max_batch_size": _moot("a batch is as large as its topic's max.message.bytes allows"),
    "producer_max_request_size": _moot("what a topic's max.message.bytes does not allow fails its event"),
    "producer_partitioner": _works("of what agents, timers and pages send; not of semel's own topics"),
    "producer_request_timeout": _moot("the settings rpc_timeout_ms and commit_timeout_ms"),
    "producer_threaded": _moot("what is sent becomes part of an epoch"),
    "producer_metadata_max_age_ms": _moot(_CLIENT),
    "producer_connections_max_idle_ms": _moot(_CLIENT),
    # -- agents that are asked
    "reply_create_topic": _refused(
        "nobody reads replies on semel yet; leave it out, use cast() or send(), and read the answer from a topic or a table"
    ),
    "reply_expires": _moot("replies are not read yet"),
    "reply_to": _works("where ask_nowait lets its reply be sent"),
    "reply_to_prefix": _works("where ask_nowait lets its reply be sent"),
    # -- streams
    "processing_guarantee": _works("any value: semel's promise holds"),
    "stream_buffer_maxsize": _moot("records are buffered within limits of semel's own"),
    "stream_processing_timeout": _moot("the setting handler_timeout_ms"),
    "stream_publish_on_commit": _moot("what an event sends is committed with it"),
    "stream_recovery_delay": _moot(_ENGINE),
    "stream_wait_empty": _moot("what is in hand is finished within drain_timeout_ms"),
    # -- tables
    "recovery_consistency_check": _moot("positions and state are checked at every start"),
    "store": _works("rocksdb:// only; memory:// is refused"),
    "store_check_exists": _moot(_ENGINE),
    "crash_app_on_aerospike_exception": _moot("there is no Aerospike store"),
    "aerospike_retries_on_exception": _moot("there is no Aerospike store"),
    "aerospike_sleep_seconds_between_retries_on_exception": _moot("there is no Aerospike store"),
    "table_cleanup_interval": _moot("it is about windowed tables, which are refused"),
    "table_key_index_size": _moot("it is about windowed tables, which are refused"),
    "table_standby_replicas": _refused(
        "no standby is kept: a takeover restores from the changelog; leave it out", lambda v: v in (0, 1)
    ),
    # -- topics
    "topic_allow_declare": _refused(
        "a worker creates the topics of its state; create them yourself beforehand, then none is created",
        lambda v: v is True,
    ),
    "topic_disable_leader": _moot("the leader is the worker that runs task 0"),
    "topic_partitions": _works("of output topics that semel creates; changelogs have the source's"),
    "topic_replication_factor": _works("the setting replication_factor"),
    # -- web
    "cache": _works(),
    "web": _refused(_OWN_PAGES),
    "web_bind": _works("the setting web_bind, 127.0.0.1 where nothing is said; another needs web_token or web_open"),
    "web_application_options": _refused(_OWN_PAGES, lambda v: not v),
    "web_cors_options": _refused(_OWN_PAGES, lambda v: not v),
    "web_enabled": _works(),
    "web_stats_enabled": _refused(
        "Faust's sensors see nothing on semel; see GET /pipelines and /metrics", lambda v: not v
    ),
    "web_graph_enabled": _refused("see GET /pipelines", lambda v: not v),
    "web_router_enabled": _moot("any worker answers GET /tables/{table}/{key} for any key"),
    "web_tables_enabled": _moot("GET /tables/{table}"),
    "web_metrics_enabled": _refused("Faust's sensors see nothing on semel; see GET /metrics", lambda v: not v),
    "web_host": _works("the setting web_url"),
    "web_in_thread": _refused(_OWN_PAGES, lambda v: not v),
    "web_port": _works("the setting web_port"),
    "web_ssl_context": _refused(_OWN_PAGES),
    "web_transport": _refused(_OWN_PAGES),
    "canonical_url": _works("the setting web_url"),
    # -- `faust worker`
    "worker_redirect_stdouts": _works("with `faust worker`"),
    "worker_redirect_stdouts_level": _works("with `faust worker`"),
    # -- classes
    "Agent": _refused(_OWN_CLASS, _is_ours),
    "ConsumerScheduler": _refused("semel's lanes take partitions in turn; leave it out"),
    "Event": _refused("semel makes its events itself; leave it out"),
    "Schema": _refused(
        "key_type, value_type and serializers are what semel reads of a schema; register a codec instead"
    ),
    "Stream": _refused(_OWN_CLASS, _is_ours),
    "Table": _refused(_OWN_CLASS, _is_ours),
    "SetTable": _refused("set tables do not run on semel yet; leave it out"),
    "GlobalTable": _refused("global tables do not run on semel yet; leave it out"),
    "SetGlobalTable": _refused("global tables do not run on semel yet; leave it out"),
    "TableManager": _refused(_OWN_CLASS, _is_ours),
    "Serializers": _works(),
    "Worker": _works("with `faust worker`"),
    "PartitionAssignor": _refused(
        "partition p of every topic goes to one worker, as semel's own assignor says; leave it out"
    ),
    "LeaderAssignor": _refused("the leader is the worker that runs task 0; leave it out"),
    "Router": _refused("any worker answers GET /tables/{table}/{key} for any key; leave it out"),
    "Topic": _refused(_OWN_CLASS, _is_ours),
    "HttpClient": _works(),
    "Monitor": _refused("Faust's sensors see nothing on semel; see GET /metrics"),
    # -- deprecated in Faust
    "stream_ack_cancelled_tasks": _moot("an event counts when its code is done"),
    "stream_ack_exceptions": _moot("an event counts when its code is done"),
    "url": _works("the setting broker"),
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
            raise ConfigError(f"Faust's setting {name}{_shown(name, value)} does not run on semel: {rule.said}")
    start_of(conf)
    security_of(conf)


def say_moot(conf: Any) -> None:
    """One line that names what was set and has nothing to act on."""
    moot = [
        f"{name} ({rule.said})"
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
    said: Any = str(conf.consumer_auto_offset_reset)
    if said not in ("earliest", "latest"):
        raise ConfigError(
            f"consumer_auto_offset_reset={said!r} does not run on semel: where a group begins is said once, by 'earliest' or "
            "'latest'; a group that lost its place is refused anyway, until a person decides (`semel reset`)"
        )
    return None if said == pristine().consumer_auto_offset_reset else said


def client_id_of(conf: Any) -> str | None:
    said = str(conf.broker_client_id)
    return None if said == pristine().broker_client_id else said


def partitions_of(conf: Any) -> int | None:
    """Of output topics that are created and say nothing themselves; None: as many as the source."""
    said = int(conf.topic_partitions)
    return None if said == pristine().topic_partitions else said


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
    said: dict[str, Any] = {}
    given = {name: value for name, value, _ in _given(conf)}
    for name, ours, unit in (
        ("broker_session_timeout", "session_timeout_ms", 1000),
        ("broker_rebalance_timeout", "rebalance_timeout_ms", 1000),
        ("broker_commit_interval", "commit_interval_ms", 1000),
        ("topic_replication_factor", "replication_factor", 1),
    ):
        if name in given:
            said[ours] = int(float(given[name]) * unit)
    if "web_bind" in given:
        said["web_bind"] = str(given["web_bind"])
    if "web_port" in given:
        said["web_port"] = int(given["web_port"])
    if "canonical_url" in given or "web_host" in given:
        said["web_url"] = str(conf.canonical_url)
    security = security_of(conf)
    if security is not None:
        said["broker_security"] = security
    said = {name: value for name, value in said.items() if name not in settings.model_fields_set}
    return settings.replace(**said) if said else settings


def not_in_memory(what: str, store: Any) -> None:
    """DeclarationError for a store that forgets."""
    if store is not None and str(store).startswith("memory"):
        raise DeclarationError(
            f"{what}store={str(store)!r} would forget rows at a restart; leave store= out: rows are kept in RocksDB"
        )
