"""Every argument of what a Faust app declares, and what becomes of it on semel; methods and signals likewise.

Tables, as those of the settings; a test holds them against Faust's signatures. What is refused is refused where it is
declared, or at start, with what to do instead.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import faust

from semel.errors import DeclarationError
from semel.faust_.rules import Does, Rule, moot, refused, works

_TYPES = (int, float, Decimal, str, bytes)


def _readable(value: Any) -> bool:
    """Faust reads a model by its `from_data`; of other types it knows these."""
    return value in _TYPES or hasattr(value, "from_data")


def _readable_value(value: Any) -> bool:
    return value in (dict, list) or _readable(value)


def _empty(value: Any) -> bool:
    return not value


_KEY_TYPE = refused(
    "Faust reads models (faust.Record), int, float, Decimal, str and bytes by type; name one of them", _readable
)
_VALUE_TYPE = refused(
    "models (faust.Record), int, float, Decimal, str, bytes, dict and list are read by type; leave others out",
    _readable_value,
)
_SCHEMA = refused(
    "key_type, value_type and serializers are what semel reads of a schema; give those, and register a codec for the rest",
    lambda value: type(value) is faust.Schema,
)
_WINDOW = refused("windowed tables do not run on semel yet; keep a row a window yourself, with the window in the key")
_GLOBAL = refused("global tables do not run on semel yet; ask GET /tables/{table} of any worker", _empty)

TOPIC: dict[str, Rule] = {
    "topics": works(),
    "pattern": refused("name the topics"),
    "schema": _SCHEMA,
    "key_type": _KEY_TYPE,
    "value_type": _VALUE_TYPE,
    "key_serializer": works(),
    "value_serializer": works(),
    "partitions": works("where semel creates the topic"),
    "retention": works("where semel creates the topic"),
    "compacting": works("where semel creates the topic"),
    "deleting": works("where semel creates the topic"),
    "replicas": works("as the setting replication_factor says; another is refused"),
    "acks": refused("positions commit with what their events did; leave it out", lambda value: value is True),
    "internal": works(),
    "config": works("where semel creates the topic"),
    "maxsize": moot("records are buffered within limits of semel's own"),
    "allow_empty": works(),
    "has_prefix": works(),
    "loop": moot("there is one event loop"),
}

TABLE: dict[str, Rule] = {
    "name": works(),
    "default": works(),
    "store": works("rocksdb:// only; memory:// is refused"),
    "schema": _SCHEMA,
    "key_type": _KEY_TYPE,
    "value_type": _VALUE_TYPE,
    "partitions": works("as many as the source has; another number is refused at start"),
    "window": _WINDOW,
    "changelog_topic": refused(
        "a changelog is named {app}-{table}-changelog; leave it out, and send what others are to read"
    ),
    "help": works(),
    "on_recover": refused("tables are restored by the engine, task by task; leave it out, see GET /readyz"),
    "on_changelog_event": refused("tables are restored by the engine, task by task; leave it out"),
    "recovery_buffer_size": moot("tables are restored by the engine"),
    "standby_buffer_size": moot("no standby is kept"),
    "extra_topic_configs": refused("set them on the topic {app}-{table}-changelog yourself, and leave it out", _empty),
    "recover_callbacks": refused("tables are restored by the engine, task by task; leave it out", _empty),
    "options": refused("semel tunes its one RocksDB of a worker itself; leave it out", _empty),
    "use_partitioner": refused("a row lives where its event is; leave it out", _empty),
    "on_window_close": _WINDOW,
    "is_global": _GLOBAL,
    "synchronize_all_active_partitions": moot("tables are restored before their events are handled"),
}

AGENT: dict[str, Rule] = {
    "channel": works(),
    "name": works(),
    "concurrency": refused("it is not there yet; run more workers instead", lambda value: value == 1),
    "supervisor_strategy": moot("an agent does not crash: an event that fails is tried again, then dead-lettered"),
    "sink": works(),
    "isolated_partitions": refused("it is not there yet; run more workers instead", _empty),
    "use_reply_headers": works(),
    # What @app.agent passes on.
    "help": works(),
    "schema": _SCHEMA,
    "key_type": _KEY_TYPE,
    "value_type": _VALUE_TYPE,
}

PAGE: dict[str, Rule] = {
    "path": works(),
    "base": works(),
    "cors_options": refused("pages are served by semel's web server; put a proxy before the worker", _empty),
    "name": works(),
}

STREAM: dict[str, Rule] = {
    **dict.fromkeys(("events", "items", "filter", "echo", "enumerate", "add_processor", "current_event"), works()),
    **dict.fromkeys(("noack", "ack", "enable_acks"), moot("an event counts when its code is done")),
    **dict.fromkeys(
        ("take", "take_events", "take_with_timestamp", "noack_take"),
        refused("it would step out of the epoch; use stream.batches(), whose batches are units of work"),
    ),
    "group_by": refused("send to a topic with the new key, and give that topic an agent in an app of its own"),
    "through": refused("send to the topic, and give it an agent in an app of its own"),
    **dict.fromkeys(
        ("combine", "join", "left_join", "inner_join", "outer_join"),
        refused("give each topic an agent, and keep what is to be joined in a table"),
    ),
    **dict.fromkeys(
        ("clone", "contribute_to_stream", "derive_topic", "get_active_stream", "get_root_stream", "info", "on_merge",
         "remove_from_stream", "send", "throw"),
        works(),
    ),
}  # fmt: skip

SIGNALS: dict[str, Rule] = {
    **dict.fromkeys(
        ("on_before_configured", "on_configured", "on_after_configured", "on_before_shutdown", "on_worker_init"),
        works(),
    ),
    "on_partitions_assigned": refused("nobody fires it on semel; see GET /pipelines for what a worker runs"),
    "on_partitions_revoked": refused("nobody fires it on semel; what an event has to clean up, it does before it ends"),
    "on_rebalance_complete": refused("nobody fires it on semel; see GET /pipelines and /readyz"),
    "on_produce_message": refused("nobody fires it on semel; give headers where the message is sent"),
}


def check(rules: Mapping[str, Rule], what: str, given: Mapping[str, Any]) -> None:
    """DeclarationError for the first argument that is refused."""
    for name, value in given.items():
        rule = rules.get(name)
        if rule is not None and rule.does is Does.REFUSED and value is not None and not rule.fine(value):
            shown = value.__name__ if isinstance(value, type) else repr(value)
            raise DeclarationError(f"{what}: {name}={shown:.80} does not run on semel: {rule.message}")


def check_signals(app: Any) -> None:
    """DeclarationError where somebody waits for a signal that never comes, or feeds on events that nobody counts."""
    for name, rule in SIGNALS.items():
        if rule.does is Does.REFUSED and any(True for _ in getattr(app, name).iter_receivers(app)):
            raise DeclarationError(f"app {app.conf.id!r}: the signal {name} is waited for: {rule.message}")
    for sensor in app.sensors:
        if sensor is not app._monitor:
            raise DeclarationError(
                f"app {app.conf.id!r}: the sensor {type(sensor).__name__} would see nothing on semel; take it out, and see GET "
                "/metrics and /pipelines"
            )
