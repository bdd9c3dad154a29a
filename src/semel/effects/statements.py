"""What is asked of PostgreSQL, as generators of statements: no connection is known here, so that one text serves both kinds.

A claim is always an INSERT that meets the key, never a SELECT that looks for it first: between a look and an insert there is room
for another one. Times are the server's; no clock of a client is asked.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from semel.effects.decisions import StoredClaim
from semel.effects.effect import Effect, Outcome, Place
from semel.errors import EffectInFlight


class Query(NamedTuple):
    text: str
    parameters: Sequence[Any] = ()


Rows = list[tuple[Any, ...]]
Asking = Generator[Query, Rows, Any]

# A row that was met and is gone when it is read was purged or released just then; more than once or twice is not that.
LOOKS_MAX = 20


class Statements(NamedTuple):
    """The statements for the tables of one schema."""

    insert: str
    insert_done: str
    insert_event: str
    insert_event_done: str
    select: str
    take_over: str
    begin_anew: str
    set_outcome: str
    keep: str
    release: str
    stranded: str
    settle: str
    forget: str
    purge: str
    purge_events: str


def statements(schema: str) -> Statements:
    table = f"{schema}.effects"
    event = 'topic, topic_id, partition, "offset", at_ms'
    event_is = 'topic = %s, topic_id = %s, partition = %s, "offset" = %s, at_ms = %s, window_ms = %s'
    ours, open_ours = "WHERE key = %s AND owner = %s", "WHERE key = %s AND owner = %s AND NOT done"
    is_done = "done = true, done_at = clock_timestamp()"
    again = (
        f"UPDATE {table} SET owner = %s, attempts = attempts + 1, claimed_at = clock_timestamp(), payload = %s, "
        f"outcome = NULL, {event_is}, "
    )

    def inserted(event: str = "", *, done: bool, columns: int) -> str:
        return (
            f"INSERT INTO {table} (key, scope, step, id, edition, payload, owner, {event}done, done_at) "
            f"VALUES ({'%s, ' * columns}{'true, clock_timestamp()' if done else 'false, NULL'}) "
            "ON CONFLICT (key) DO NOTHING RETURNING true"
        )

    old = "done_at < clock_timestamp() - {} * interval '1 millisecond' RETURNING true"
    return Statements(
        insert=inserted(done=False, columns=7),
        insert_done=inserted(done=True, columns=7),
        insert_event=inserted(f"{event}, window_ms, ", done=False, columns=13),
        insert_event_done=inserted(f"{event}, window_ms, ", done=True, columns=13),
        select=f"SELECT payload, owner, done, outcome, {event} FROM {table} WHERE key = %s",
        take_over=f"{again}done = false, done_at = NULL {ours} RETURNING true",
        begin_anew=f"{again}{is_done} {ours} RETURNING true",
        set_outcome=f"UPDATE {table} SET outcome = %s {ours} RETURNING true",
        keep=f"UPDATE {table} SET {is_done}, outcome = %s {open_ours} RETURNING true",
        release=f"DELETE FROM {table} {open_ours} RETURNING true",
        stranded=f'SELECT key, scope, step, id, edition, topic, topic_id, partition, "offset", attempts, claimed_at '
        f"FROM {table} WHERE NOT done ORDER BY claimed_at LIMIT %s",
        settle=f"UPDATE {table} SET {is_done}, outcome = %s WHERE key = %s AND NOT done RETURNING true",
        forget=f"DELETE FROM {table} WHERE key = %s AND NOT done RETURNING true",
        # What is not done is never purged: it is the only trace of an effect that may have happened.
        purge=f"DELETE FROM {table} WHERE done AND topic IS NULL AND {old.format('%s')}",
        purge_events=f"DELETE FROM {table} WHERE done AND scope = %s AND topic = %s AND topic_id = %s AND partition = %s "
        f'AND "offset" < %s AND {old.format("greatest(%s, coalesce(window_ms, 0))")}',
    )


def claim(sql: Statements, effect: Effect, owner: str, *, done: bool) -> Generator[Query, Rows, StoredClaim | None]:
    """None: the row is ours. `done`: it commits with its effect, so that whoever sees it knows that this has happened.

    Where another transaction has the key and is not over, the INSERT waits for it, up to `lock_timeout`.
    """
    key = effect.key
    digest = key.digest
    parameters = (digest, key.scope, key.step, key.id, key.edition, effect.payload, owner)
    if effect.place is None:
        insert = Query(sql.insert_done if done else sql.insert, parameters)
    else:
        insert = Query(sql.insert_event_done if done else sql.insert_event, (*parameters, *_event(effect)))
    for _ in range(LOOKS_MAX):
        inserted = yield insert
        if inserted:
            return None
        rows = yield Query(sql.select, (digest,))
        if rows:
            stored = _stored(rows[0])
            # A claim whose answer was lost is ours as well.
            return None if stored.owner == owner and stored.done is done else stored
    raise EffectInFlight(
        f"effect {key} was claimed and given up by others {LOOKS_MAX} times in a row; call it again later"
    )


def claim_locked(sql: Statements, effect: Effect, owner: str) -> Generator[Query, Rows, StoredClaim | None]:
    """As `claim`, for an effect elsewhere. The lock is the session's, and goes with its process, however that ends."""
    [(locked,)] = yield Query("SELECT pg_try_advisory_lock(%s)", (effect.key.lock,))
    if locked:
        return (yield from claim(sql, effect, owner, done=False))
    rows = yield Query(sql.select, (effect.key.digest,))
    # Whoever holds the lock may not have got to its row.
    stored = _stored(rows[0]) if rows else StoredClaim(effect.payload, "", False)
    return StoredClaim(stored.payload, stored.owner, stored.done, stored.outcome, stored.place, stored.at_ms, held=True)


def take_over(sql: Statements, effect: Effect, seen: str, owner: str) -> Generator[Query, Rows, bool]:
    """For an effect elsewhere. False where somebody else is at it by now."""
    [(locked,)] = yield Query("SELECT pg_try_advisory_lock(%s)", (effect.key.lock,))
    if not locked:
        return False
    if (yield Query(sql.take_over, (owner, effect.payload, *_event(effect), effect.key.digest, seen))):
        return True
    rows = yield Query(sql.select, (effect.key.digest,))
    # An answer that was lost: it is ours already.
    return bool(rows) and _stored(rows[0]).owner == owner


def begin_anew(sql: Statements, effect: Effect, seen: str, owner: str) -> Generator[Query, Rows, bool]:
    """Within a transaction: the row of an earlier event becomes ours, if it is still what was `seen`."""
    return bool((yield Query(sql.begin_anew, (owner, effect.payload, *_event(effect), effect.key.digest, seen))))


def keep(sql: Statements, effect: Effect, owner: str, outcome: Outcome) -> Generator[Query, Rows, bool]:
    rows = yield Query(sql.keep, (outcome.raw, effect.key.digest, owner))
    if not rows:
        # An answer that was lost: it is kept already.
        rows = yield Query(sql.select, (effect.key.digest,))
        return bool(rows) and _stored(rows[0]).owner == owner and _stored(rows[0]).done
    return True


def release(sql: Statements, effect: Effect, owner: str) -> Generator[Query, Rows, None]:
    yield Query(sql.release, (effect.key.digest, owner))


def set_outcome(sql: Statements, effect: Effect, owner: str, outcome: Outcome) -> Generator[Query, Rows, bool]:
    """Within the transaction that has the claim."""
    return bool((yield Query(sql.set_outcome, (outcome.raw, effect.key.digest, owner))))


UNLOCK = Query("SELECT pg_advisory_unlock_all()")


def version(schema: str) -> Generator[Query, Rows, int]:
    [(there,)] = yield Query("SELECT to_regclass(%s) IS NOT NULL", (f"{schema}.inbox_version",))
    if not there:
        return 0
    [(newest,)] = yield Query(f"SELECT coalesce(max(version), 0) FROM {schema}.inbox_version")
    return newest


def _event(effect: Effect) -> tuple[Any, ...]:
    place = effect.place or (None, None, None, None)
    return (*place, effect.at_ms, effect.window_ms)


def _stored(row: tuple[Any, ...]) -> StoredClaim:
    payload, owner, done, outcome, topic, topic_id, partition, offset, at_ms = row
    place = None if topic is None else Place(topic, topic_id, partition, offset)
    return StoredClaim(bytes(payload), str(owner), done, None if outcome is None else bytes(outcome), place, at_ms)
