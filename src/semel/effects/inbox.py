"""Inbox: a PostgreSQL database that remembers which effects have happened."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from semel import event as events
from semel.effects import effect as effects
from semel.effects import schema as schemas
from semel.effects.decisions import NotDone
from semel.effects.effect import EffectKey, Place
from semel.effects.event_key import OncePerAttempt, effect_of
from semel.effects.once import Once
from semel.effects.postgres import Connections, asked
from semel.effects.statements import Query, statements, version
from semel.errors import ConfigError, EffectError, HandlingError, OutsideEvent


class _NotGiven:
    def __repr__(self) -> str:
        return "not given"


NOT_GIVEN: Final = _NotGiven()
_MS: Final = timedelta(milliseconds=1)


class StrandedEffect(NamedTuple):
    """A claim without an outcome: its effect is under way, or was when its process ended. `place`: of its event."""

    key: EffectKey
    place: Place | None
    attempts: int
    claimed_at: datetime


class DoneBelow(NamedTuple):
    """All events of a pipeline in a partition before `offset` are done for good: committed, none of them parked, and none in
    a dead letter that may be replayed."""

    pipeline: str
    topic: str
    topic_id: str
    partition: int
    offset: int


class Inbox:
    """Where effects are remembered. `url`: as PostgreSQL's clients have it (`postgresql://user@host:5432/shop`, or `host=…
    dbname=…`).

    Nothing is opened before the first use. `schema`: where its tables are, which `semel inbox apply` makes. `pool_size`:
    connections a process has at most, of each of its event loops; an effect has one for as long as it lasts. `timeout`: for
    how long a connection, or another one at the same key, is waited for. `idle`: a transaction in which nothing is asked for
    so long is ended by the server. `isolation`: of the transactions of `once`.

    ConfigError where one of these cannot be; ExtraMissing without `semel[postgres]`.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "semel",
        pool_size: int = 10,
        timeout: timedelta = timedelta(seconds=10),
        idle: timedelta = timedelta(seconds=60),
        isolation: str = "read committed",
    ) -> None:
        if pool_size < 1:
            raise ConfigError(f"pool_size={pool_size!r} of an Inbox leaves no connection; give 1 or more")
        for name, span in (("timeout", timeout), ("idle", idle)):
            if span < timedelta(milliseconds=10):
                raise ConfigError(
                    f"{name}={span} of an Inbox is less than 10 ms; give a timedelta that a network can keep"
                )
        self._connections = Connections(
            url, schema, pool_size=pool_size, timeout_s=timeout.total_seconds(), idle_s=idle.total_seconds(),
            isolation=isolation,
        )  # fmt: skip
        self._sql = statements(schema)

    def __repr__(self) -> str:
        return f"Inbox({self._connections.where}, schema={self._connections.schema!r})"

    def once(self, key: Any = NOT_GIVEN, payload: Any = NOT_GIVEN, *, scope: str = "", step: str = "") -> Once:
        """One effect that is to happen once.

        `once(event)`: of the event in hand, an `Event` or its value; `once()` likewise. Its key is the pipeline's name,
        `step` and the event's dedup id, or its place in its topic; an event with several effects names each by its `step`.
        `once(key, payload)`: of anything, with or without Kafka; `key` is what the caller knows it by (a str, bytes, a
        number, a UUID, or a list of such), within its `scope` and `step`, `payload` whatever must be the same for it to be
        the same (plain data, of which a hash is kept).

        OutsideEvent, HandlingError. What is raised when it is used: see `Once`.
        """
        if payload is not NOT_GIVEN:
            return Once(self._connections, self._sql, effects.effect(key, payload, scope=scope, step=step))
        if scope:
            raise HandlingError(
                f"scope={scope!r} without a payload: the scope of an event's effect is its pipeline; leave it out"
            )
        identity = _in_hand(key).identity()
        return Once(self._connections, self._sql, effect_of(identity, step), OncePerAttempt(identity.attempt.done))

    # -- its tables

    def plan(self) -> schemas.Plan:
        """What `apply` would do."""
        with self._connections.lent(fit=False) as connection:
            return schemas.plan(asked(connection, version(self._connections.schema)), self._connections.schema)

    def apply(self) -> schemas.Plan:
        """Make the tables, or bring them up to this version, in one transaction; what was done. Two at a time wait for
        each other."""
        schema = self._connections.schema
        with self._connections.lent(fit=False) as connection, connection.transaction():
            connection.execute(
                "SELECT pg_advisory_xact_lock(%s)", (EffectKey("semel", "schema", schema.encode()).lock,)
            )
            plan = schemas.plan(asked(connection, version(schema)), schema)
            for statement in plan.statements:
                connection.execute(statement.encode())
            return plan

    # -- what is kept

    def stranded(self, limit: int = 100) -> list[StrandedEffect]:
        """Effects that are not done, the oldest first."""
        with self._connections.lent() as connection:
            rows = connection.execute(self._sql.stranded.encode(), (limit,)).fetchall()
        return [
            StrandedEffect(
                EffectKey(scope, step, bytes(id), bytes(edition)),
                None if topic is None else Place(topic, topic_id, partition, offset), attempts, claimed_at,
            )
            for _, scope, step, id, edition, topic, topic_id, partition, offset, attempts, claimed_at in rows
        ]  # fmt: skip

    def settle(self, key: EffectKey | str, outcome: Any) -> None:
        """A person knows what became of an effect that is not done: it happened, with this outcome, or it did not
        (`NOT_DONE`), and the next call does it. `key`: as `stranded` has it, or its digest in hex.

        EffectError where somebody is at it, or there is no such effect.
        """
        digest = key.digest if isinstance(key, EffectKey) else _digest(key)
        lock = int.from_bytes(digest[:8], "big", signed=True)
        name = digest.hex()
        kept = effects.outcome(None if isinstance(outcome, NotDone) else outcome)
        if kept.refused:
            raise HandlingError(f"effect {name} is not settled: {kept.refused}")
        with self._connections.lent() as connection, connection.transaction():
            [(free,)] = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (lock,)).fetchall()
            if not free:
                raise EffectError(f"effect {name} is being carried out just now; ask again when it is over")
            if isinstance(outcome, NotDone):
                query = Query(self._sql.forget, (digest,))
            else:
                query = Query(self._sql.settle, (kept.raw, digest))
            if not connection.execute(query.text.encode(), query.parameters).fetchall():
                raise EffectError(f"there is no effect {name} that is not done; see semel inbox ls")

    def purge(self, older_than: timedelta, *, done: tuple[DoneBelow, ...] = ()) -> int:
        """Forget effects that were done longer ago than that, by the server's clock; how many were forgotten.

        Those of events only where `done` says that nobody handles them again, and not before their dedup window is over. What
        is not done is never forgotten. A call that comes after it is a new effect.
        """
        ms = older_than // _MS
        if ms <= 0:
            raise ConfigError(f"older_than={older_than} would forget what has just happened; give a positive timedelta")
        with self._connections.lent() as connection:
            gone = connection.execute(self._sql.purge.encode(), (ms,)).rowcount
            for below in done:
                gone += connection.execute(self._sql.purge_events.encode(), (*below, ms)).rowcount
            return gone

    # -- its end

    def close(self) -> None:
        """Close the connections that were opened outside of event loops."""
        self._connections.close()

    async def aclose(self) -> None:
        """As `close`, with those of the running event loop."""
        await self._connections.close_async()


def _in_hand(given: Any) -> events.Event:
    if isinstance(given, events.Event):
        return given
    current = events.current_event()
    if current is None:
        raise OutsideEvent(
            "once() was called without a payload where no event is in hand: inside a handler give the event, elsewhere a key "
            "and a payload, as once('order-17', order)"
        )
    # A value is decoded anew for who asks.
    if given is NOT_GIVEN or (type(given) is type(current.value) and given == current.value):
        return current
    raise HandlingError(
        f"once({given!r:.80}): this is not the event in hand; give an Event (semel.current_event(), stream.events(), "
        "batch.events) or the value that the handler was given, or a key and a payload"
    )


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ConfigError(f"{text!r:.80} is no key of an effect as semel inbox ls prints it: 64 hexadecimal digits")
    return digest


# -- the one that settings name

_default: list[Inbox] = []
_lock = threading.Lock()


def default_inbox() -> Inbox:
    """That of the setting `inbox_url`. ConfigError where there is none."""
    with _lock:
        if not _default:
            from semel.config import Settings

            url = Settings.load().inbox_url
            if url is None:
                raise ConfigError(
                    "semel.once needs a database that remembers what has happened: set SEMEL_INBOX_URL (or inbox_url, or "
                    "inbox_url_file), or call once() of an Inbox of yours"
                )
            _default.append(Inbox(url.get_secret_value()))
        return _default[0]


def once(key: Any, payload: Any, *, scope: str = "", step: str = "", inbox: Inbox | None = None) -> Once:
    """One effect that is to happen once, with or without Kafka: `Inbox.once`, of the inbox that the settings name
    unless given."""
    return (default_inbox() if inbox is None else inbox).once(key, payload, scope=scope, step=step)
