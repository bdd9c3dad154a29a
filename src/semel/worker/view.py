"""The engine as the web views see it: committed state, owners, health."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import reduce
from typing import TYPE_CHECKING, Any

import msgspec

from semel.codec import Codec
from semel.errors import DecodeError, HandlingError
from semel.partitioner import partition_of
from semel.plan import TablePlan
from semel.stages.fetch.lag import whole
from semel.state.dedup_marks import OUTCOMES, Mark, unpack
from semel.state.store import StoreError, after_prefix
from semel.state.table_rows import Rows
from semel.state.task import Task, TaskState
from semel.web.view import NotOwned, Owner, Page, Restoring, TableInfo, TableRow
from semel.worker.metrics import exposition

if TYPE_CHECKING:
    from semel.worker.engine import Engine


# What begins so is taken for the beginning of a number, a text in quotes, a list or a dict.
_JSON_BEGINS = '"[{-0123456789'
# Written as text, so that the store's order is not theirs: "10" stands before "2".
_NUMBERS = (int, float)
# Rows of one call: a millisecond or two where each is read, and none is in the range asked for.
_LOOKED_AT_MAX = 1_000


class EngineView:
    """Implements `semel.web.view.WorkerView`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.app_id = engine.app
        self.instance = engine.instance
        self._since = time.monotonic()

    # -- tables

    def tables(self) -> Sequence[TableInfo]:
        held = len(self._engine.tasks)
        return [
            TableInfo(plan.name, self.app_id, plan.keyed, plan.merge is not None, held, plan.key.type in _NUMBERS)
            for plan in self._engine.plan.tables
        ]

    def held(self) -> Sequence[int]:
        return sorted(p for p, t in self._engine.tasks.items() if t.state is TaskState.RUNNING)

    def count(self, table: str, partition: int, after: bytes | None, limit: int) -> tuple[int, bytes | None]:
        rows = self._task(partition).tables[table]
        count, last = 0, b""
        with self._reading(partition):
            for raw, _ in rows.scan(b"" if after is None else after + b"\x00"):
                if count == limit:
                    return count, last
                count, last = count + 1, raw
        return count, None

    def key(self, table: str, text: str) -> Any:
        return _key_of(self._plan(table).key, text)

    def partition_of(self, table: str, key: Any) -> int | None:
        plan = self._plan(table)
        count = max(self._engine.assignment.partitions.values(), default=0)
        return partition_of(plan.key.encode(key), count) if plan.keyed and count else None

    def owners(self) -> Sequence[Owner]:
        engine = self._engine
        mine = engine.assignment.tasks
        return [
            Owner(task, None if task in mine or instance == engine.instance else url)
            for task, (instance, url) in sorted(engine.assignment.owners.items())
        ]

    def get(self, table: str, key: Any, partition: int) -> TableRow | None:
        plan, task = self._plan(table), self._task(partition)
        rows = task.tables[table]
        raw = _raw(rows, key)
        with self._reading(partition):
            value = rows.committed(raw)
        return None if value is None else _row(plan, key, value, partition, raw)

    def merge(self, table: str, stored: Sequence[bytes]) -> Any:
        plan = self._plan(table)
        assert plan.merge is not None
        if len(stored) == 1:
            return shown_value(plan.value, stored[0])
        try:
            whole = reduce(plan.merge, map(plan.value.decode, stored))
            return shown_value(plan.value, plan.value.encode(whole))
        except Exception as exc:
            raise HandlingError(
                f"merge= of table {table!r} does not take the parts of this row: {type(exc).__name__}: {exc!s:.200}"
            ) from exc

    def scan(
        self,
        table: str,
        partition: int,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        after: bytes | None = None,
        limit: int = 100,
        bytes_max: int = 1 << 18,
    ) -> Page:
        plan, rows = self._plan(table), self._task(partition).tables[table]
        begin, stop = b"", None
        if prefix:
            begin = prefix.encode() if rows.kind == "bytes" else _beginning(plan.key, prefix)
            stop = after_prefix(begin)
        low = None if start is None else _key_of(plan.key, start)
        high = None if end is None else _key_of(plan.key, end)
        numeric = plan.key.type in _NUMBERS
        if not numeric:
            if low is not None:
                begin = max(begin, _raw(rows, low))
            if high is not None:
                bound = _raw(rows, high)
                stop = bound if stop is None else min(stop, bound)
        if after is not None:
            begin = max(begin, after + b"\x00")
        page: list[TableRow] = []
        size, looked_at, last = 0, 0, b""
        with self._reading(partition):
            for raw, value in rows.scan(begin, stop):
                if len(page) == limit or size >= bytes_max or looked_at == _LOOKED_AT_MAX:
                    return Page(tuple(page), last)
                looked_at, last = looked_at + 1, raw
                key = rows.key_of(raw)
                if numeric and ((low is not None and key < low) or (high is not None and key >= high)):
                    continue
                size += len(raw) + len(value)
                page.append(_row(plan, key, value, partition, raw))
        return Page(tuple(page), None)

    # -- what runs

    def pipelines(self) -> list[dict[str, Any]]:
        engine = self._engine
        plan = engine.plan
        counts: Counter[str] = Counter()
        outputs: Counter[str] = Counter()
        for task in engine.tasks.values():
            counts.update(task.committed.counts)
            outputs.update(task.committed.outputs)
        lag = engine.lag()
        commits = sorted(engine.commit_seconds)
        return [
            {
                "pipeline": engine.app,
                "instance": engine.instance,
                "graph": {
                    "source": sorted(plan.sources),
                    "dedup": plan.dedup.shape() if plan.dedup else None,
                    "agents": [a.name for a in plan.agents],
                    "tables": [t.name for t in plan.tables],
                    "sink": sorted(plan.sinks),
                },
                "counts": dict(counts),
                "outputs": dict(outputs),
                "events_per_s": round(engine.rate(), 1),
                "lag": whole(lag.values()),
                "commits": {
                    **{name: int(value) for name, value in engine.stats.items()},
                    "p50_ms": round(commits[len(commits) // 2] * 1000, 1) if commits else None,
                },
                "tasks": [
                    {
                        "partition": t.partition,
                        "state": t.state.value,
                        "position": {topic: at.next for topic, at in t.committed.topics.items()},
                        "parked": t.committed.parked,
                        "held_keys": t.held_keys,
                        "waiting_for_letters": t.waiting_for_letters,
                        "timers": t.committed.timers,
                        "stream_time_ms": t.committed.stream_time.ms,
                        "lag": whole(n for tp, n in lag.items() if tp[1] == t.partition),
                        "restored": t.restored,
                        "to_restore": t.to_restore,
                    }
                    for t in engine.tasks.values()
                ],
                "owners": {str(task): owner[0] for task, owner in engine.assignment.owners.items()},
                "waiting_for": engine.waiting_for,
                "paused_by": engine.paused_by,
                "in_hand": [asdict(event) for event in engine.lingering.in_hand()],
                "not_asking": [asdict(event) for event in engine.lingering.not_asking()],
                "without_results": [asdict(agent) for agent in engine.without_results.now()],
                "returned": {agent.plan.name: agent.returned for agent in engine.agents if agent.returned},
                "parked": {str(p): asdict(parked) for p, parked in engine.parked().items()},
                "halted": [asdict(agent) for agent in engine.halted()],
                "rate_limits": [asdict(agent) for agent in engine.limited()],
                "unreadable": {
                    f"{tp.topic}[{tp.partition}]": why for tp, why in sorted(engine.troubles.current().items())
                },
                "throttled_s": round(engine.broker.throttles.wait_s("Produce"), 1),
                "throttled": {api: round(wait_s, 1) for api, wait_s in engine.broker.throttles.waits().items()},
                "throttles": engine.broker.throttles.answers.total(),
            }
        ]

    def dedup(self, pipeline: str, written: Sequence[str]) -> list[dict[str, Any]]:
        engine = self._engine
        rule = engine.plan.dedup
        if pipeline != engine.app:
            raise KeyError(f"there is no pipeline {pipeline[:200]!r} here; this worker runs {engine.app!r}")
        if rule is None:
            raise KeyError(f"pipeline {engine.app!r} has no dedup rule, so no id is known to it")
        if engine.plan.sources and engine.membership is None:
            raise NotOwned
        ids = rule.ids(written)
        marks: list[dict[str, Any]] = []
        not_yet: Restoring | None = None
        for partition in engine.assignment.tasks:
            try:
                task = self._task(partition)
            except Restoring as progress:
                not_yet = progress
                continue
            if task.marks is not None:
                with self._reading(partition):
                    known = task.marks.find_readings(ids)
                marks += [self._mark(task, task.marks.window_ms, key, unpack(raw)) for key, raw in known]
        if not marks and not_yet is not None:
            raise not_yet
        return marks

    def _mark(self, task: Task, window_ms: int, key: bytes, mark: Mark) -> dict[str, Any]:
        rule = self._engine.plan.dedup
        assert rule is not None
        expires = mark.filed_at + window_ms
        now = task.committed.stream_time.ms or 0
        return {
            "verdict": "known" if now <= expires else "expired",
            "first": {
                "topic": next(iter(task.topics)),
                "partition": task.partition,
                "offset": mark.offset,
                "time": mark.event_time,
            },
            "outcome": OUTCOMES.get(mark.outcome, str(mark.outcome)),
            "revision": mark.revision,
            "expires": expires,
            "id": rule.shown(key),
        }

    # -- health

    def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        engine = self._engine
        restoring = [p for p in engine.assignment.tasks if not self._runs(p)]
        not_ready: dict[str, Any] = {}
        if engine.waiting_for:
            not_ready["waiting_for"] = engine.waiting_for
        if engine.paused_by:
            not_ready["paused_by"] = engine.paused_by
        if gone := engine.gone():
            not_ready["gone"] = gone
        unreadable = engine.troubles.current()
        if unreadable:
            not_ready["unreadable"] = {f"{tp.topic}[{tp.partition}]": why for tp, why in sorted(unreadable.items())}
        if engine.membership is None and engine.plan.sources:
            not_ready["group"] = (engine.group.refused if engine.group is not None else "") or "not assigned yet"
        if lingering := engine.lingering.unready():
            not_ready["in_hand"] = [asdict(event) for event in lingering]
        if idle := engine.lingering.unready_not_asking():
            not_ready["not_asking"] = [asdict(event) for event in idle]
        if halted := engine.halted():
            not_ready["halted"] = [asdict(agent) for agent in halted]
        if held_up := {str(p): parked.held_up for p, parked in engine.parked().items() if parked.held_up}:
            not_ready["held_up"] = held_up
        if held_timers := engine.timers.held_up:
            not_ready["held_timers"] = {str(p): why for p, why in held_timers.items()}
        if restoring:
            not_ready["restoring"] = {str(p): self._progress(p) for p in restoring}
        return not not_ready, not_ready or {"tasks": sorted(engine.tasks)}

    @contextmanager
    def _reading(self, partition: int) -> Generator[None]:
        """A read of the store that a view asks for. Restoring where it cannot be read: the engine mends it."""
        try:
            yield
        except StoreError as exc:
            self._engine.store_failed(exc)
            raise self._restoring(partition) from None

    def _runs(self, partition: int) -> bool:
        # What was assigned is no task yet while the writer is made.
        task = self._engine.tasks.get(partition)
        return task is not None and task.state is TaskState.RUNNING

    def _progress(self, partition: int) -> dict[str, Any]:
        at = self._restoring(partition)
        return {"done": at.done, "total": at.total, "eta_seconds": at.eta_seconds}

    def liveness(self) -> tuple[bool, Mapping[str, Any]]:
        return True, {
            "app": self.app_id,
            "instance": self.instance,
            "up_seconds": round(time.monotonic() - self._since, 1),
        }

    def metrics(self) -> bytes:
        return exposition(self._engine)

    # -- inside

    def _plan(self, table: str) -> TablePlan:
        for plan in self._engine.plan.tables:
            if plan.name == table:
                return plan
        raise KeyError(table)

    def _task(self, partition: int) -> Task:
        engine = self._engine
        if partition not in engine.assignment.tasks:
            raise NotOwned(partition)
        if not self._runs(partition):
            raise self._restoring(partition)
        return engine.tasks[partition]

    def _restoring(self, partition: int) -> Restoring:
        task = self._engine.tasks.get(partition)
        if task is None:
            return Restoring(partition, 0, 0, None)
        return Restoring(partition, task.restored, task.to_restore, self._eta(task))

    def _eta(self, task: Task) -> float | None:
        spent = self._engine.clock.monotonic() - task.restoring_since
        if not task.restored or spent <= 0:
            return None
        return round(max(0, task.to_restore - task.restored) * spent / task.restored, 1)


def _row(plan: TablePlan, key: Any, stored: bytes, partition: int, raw: bytes) -> TableRow:
    value = shown_value(plan.value, stored) if plan.merge is None else stored
    return TableRow(shown_key(key), value, partition, raw)


def shown_key(key: Any) -> Any:
    """A key as plain JSON; bytes that are not text as hex."""
    if not isinstance(key, bytes):
        return key
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.hex()


def shown_value(codec: Codec[Any], raw: bytes) -> Any:
    """A stored value as plain JSON; bytes that are not text as hex."""
    if codec.type is str:
        return raw.decode()
    if codec.type is bytes:
        return shown_key(raw)
    try:
        # Not orjson: it reads integers beyond 64 bits as floats, and a right total would look wrong.
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return raw.hex()


def _key_of(codec: Codec[Any], text: str) -> Any:
    """A key as typed by a person: text as it stands where it is no JSON or only text can be meant, else by its JSON.

    DecodeError where there can be no row of it.
    """
    if codec.type is str:
        return text
    try:
        key = codec.decode(text.encode())
        codec.encode(key)
        return key
    except DecodeError as exc:
        if codec.type is bytes:
            return text.encode()
        if _takes_text(codec, text):
            return text
        raise DecodeError(
            f"{exc}. A key is written as its JSON, percent-encoded: 5, %22text%22, %5B1,%22x%22%5D"
        ) from None
    except (TypeError, RecursionError):
        raise DecodeError(f"{text!r:.80} cannot be a key of type {codec.name}") from None


def _raw(rows: Rows, key: Any) -> bytes:
    """The bytes of a key as it was typed: text is meant as bytes where the table's keys are."""
    return key.encode() if isinstance(key, str) and rows.kind == "bytes" else rows.key_codec.encode(key)


def _takes_text(codec: Codec[Any], text: str) -> bool:
    """Whether this text may be a key itself."""
    try:
        return codec.decode(codec.encode(text)) == text
    except Exception:
        # A codec may be a user's, and raise what it likes.
        return False


def _beginning(codec: Codec[Any], prefix: str) -> bytes:
    """What the bytes of a key begin with that begins with `prefix` as typed by a person."""
    if codec.type not in (str, bytes) and prefix[0] not in _JSON_BEGINS and _takes_text(codec, prefix):
        raw = codec.encode(prefix)
        return raw[:-1] if raw.endswith(b'"') else raw
    return prefix.encode()
