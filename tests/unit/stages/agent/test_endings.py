"""How an agent's code may end, and what then becomes of the event it had in hand: done only where its code is done."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import AsyncIterable, Callable
from contextvars import copy_context
from datetime import timedelta
from typing import Any

import orjson
import pytest

from semel import Output, Pipeline, Retry, Table, Topic, current_event
from semel.callables.kind import cannot_yield, kind_of
from semel.codec import Codec
from semel.errors import StaleIncarnation
from semel.memory.faults import refuse
from semel.port import TP
from semel.testing import PipelineTester
from semel.worker.view import EngineView
from tests.unit.harness import APP, ATTEMPTS, Payment, World, given_up, payments_pipeline

STYLES = ["stream", "coroutine", "batches", "function"]


class Odd(BaseException):
    """What a library may raise that wants to be caught by nobody."""


ENDINGS: list[type[BaseException]] = [
    asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, StaleIncarnation, Odd, StopIteration,
    StopAsyncIteration,
]  # fmt: skip


def outputs(world: World) -> list[dict[str, Any]]:
    if "settlements" not in world.cluster.topics():
        return []
    return [orjson.loads(r.value or b"") for log in world.cluster.committed("settlements") for r in log]


def agent_of(world: World, run: Callable[..., Any], tables: list[Table] | None = None, **declared: Any) -> None:
    """Let the workers run this agent; with a sink where it can have results."""
    silent = cannot_yield(run, kind_of(run, declared.get("kind")))
    world.pipeline = Pipeline(
        APP,
        source=Topic("payments", key=str, value=Payment),
        agent=run,
        tables=tables or [],
        sink=None if silent else Topic("settlements", key=str, value=dict),
        retry=Retry(attempts=ATTEMPTS, first_delay=timedelta(milliseconds=20)),
        **declared,
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("ending", ENDINGS)
async def test_whatever_a_handler_raises_is_a_failed_attempt(
    world: World, ending: type[BaseException], style: str
) -> None:
    world.work.error = ending
    world.pipeline = payments_pipeline(world.work, style=style)
    worker = world.start()
    await world.until_running(worker)
    world.pay_many(120)
    world.pay(fails=-1)
    world.pay(fails=1)
    await world.drained()
    world.check()
    assert not worker.over


@pytest.mark.parametrize("style", ["stream", "batches"])
@pytest.mark.parametrize("ending", [StopAsyncIteration, StopIteration, GeneratorExit, Odd])
def test_whatever_a_codec_raises_at_a_result_is_a_failed_attempt(ending: type[BaseException], style: str) -> None:
    def encode(value: int) -> bytes:
        if value == 2:
            raise ending
        return b"%d" % value

    async def one_by_one(numbers: Any) -> Any:
        async for number in numbers:
            yield number

    async def batches(numbers: Any) -> Any:
        async for batch in numbers.batches():
            for number in batch:
                yield number

    agent = {"stream": one_by_one, "batches": batches}[style]
    done = Topic("done", value=Codec(int, encode, int, immutable=True))
    declared = Pipeline(APP, source=Topic("numbers", value=int), agent=agent, sink=done, retry=Retry(attempts=2))
    with PipelineTester(declared, partitions=1) as t:
        t.send_all(range(5), key=str)
        assert sorted(out.value for out in t.outputs()) == [0, 1, 3, 4]
        assert [letter.value for letter in t.dead_letters()] == [2]


async def test_an_event_whose_inner_task_was_cancelled_is_tried_again_and_then_dead_lettered(world: World) -> None:
    first, second = Table("first", value=int, default=int), Table("second", value=int, default=int)

    async def handle(payment: Payment) -> Any:
        first[payment.account] += 1
        if payment.fails:
            inner = asyncio.ensure_future(asyncio.sleep(60))
            await asyncio.sleep(0)
            inner.cancel()
            await inner
        second[payment.account] += 1
        return {"id": payment.id}

    agent_of(world, handle, [first, second])
    worker = world.start()
    world.pay("a1", fails=-1)
    world.pay("a1", id="good")
    await world.drained()
    assert outputs(world) == [{"id": "good"}]
    [(reason, error, attempts)] = given_up(world)
    assert (reason, attempts) == ("failed", ATTEMPTS)
    assert error.startswith("CancelledError") and "cancelled by something else" in error
    task = next(t for t in worker.engine.tasks.values() if t.counts["in"])
    assert [task.tables[name].value("a1") for name in ("first", "second")] == [1, 1]


async def test_a_handler_that_cancels_its_own_task_costs_its_event_and_no_other(world: World) -> None:
    async def handle(payment: Payment) -> Any:
        if payment.fails:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return {"id": payment.id}

    agent_of(world, handle)
    world.start()
    for n in range(10):
        world.pay("a1", id=f"p{n}", fails=-1 if n == 5 else 0)
    await world.drained()
    assert [o["id"] for o in outputs(world)] == [f"p{n}" for n in range(10) if n != 5]
    assert [reason for reason, *_ in given_up(world)] == ["failed"]


@pytest.mark.parametrize("swallowed", [Exception, BaseException])
async def test_an_event_whose_error_is_swallowed_around_the_loop_has_failed(
    world: World, swallowed: type[BaseException]
) -> None:
    first, second = Table("first", value=int, default=int), Table("second", value=int, default=int)

    async def settle(payments: Any) -> Any:
        while True:
            try:
                async for payment in payments:
                    first[payment.account] += 1
                    if payment.fails:
                        raise ConnectionError("the database is gone")
                    second[payment.account] += 1
                    yield {"id": payment.id}
            except (GeneratorExit, asyncio.CancelledError):
                raise
            except swallowed:
                pass

    agent_of(world, settle, [first, second])
    worker = world.start()
    for n in range(6):
        world.pay("a1", id=f"p{n}", fails=-1 if n == 2 else 0)
    await world.drained()
    assert [o["id"] for o in outputs(world)] == ["p0", "p1", "p3", "p4", "p5"]
    [(_, error, attempts)] = given_up(world)
    assert attempts == ATTEMPTS and "left its loop" in error
    task = next(t for t in worker.engine.tasks.values() if t.counts["in"])
    assert [task.tables[name].value("a1") for name in ("first", "second")] == [5, 5]


async def test_an_agent_that_swallows_the_end_of_its_worker_is_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.pipeline = payments_pipeline(world.work, style="stubborn")
    worker = world.start()
    await world.until_running(worker)
    world.pay_many(20, trouble=False)
    await world.drained()
    await worker.stop()
    assert caplog.text.count("does not end when its run does") == len(worker.engine.runners)


async def test_an_agent_that_swallows_everything_handles_nothing_for_a_run_that_is_over(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0

    async def settle(payments: Any) -> Any:
        nonlocal rounds
        while True:
            try:
                async for payment in payments:
                    await asyncio.sleep(0.05)
                    yield {"id": payment.id}
            except BaseException as exc:
                rounds += 1
                if isinstance(exc, GeneratorExit):
                    raise

    agent_of(world, settle)
    world.cluster.create_topic("notes", 1)
    worker = world.start(handler_timeout_ms=100)
    await world.until_running(worker)
    for n in range(20):
        world.pay("a1", id=f"p{n}")
    for _ in range(5):
        await asyncio.sleep(0.12)
        world.cluster.faults.add("EndTxn", refuse(48))
        await asyncio.sleep(1)
    await world.drained()
    assert [o["id"] for o in outputs(world)] == [f"p{n}" for n in range(20)]
    assert not given_up(world)
    assert rounds < 50
    before = asyncio.get_running_loop().time()
    await worker.stop()
    assert asyncio.get_running_loop().time() - before < 5
    [*_, said] = [r.getMessage() for r in caplog.records if "does not end when its run does" in r.getMessage()]
    assert "test_endings.py" in said and "settle" in said


@pytest.mark.parametrize("unit", ["event", "batch"])
async def test_a_row_that_outgrew_its_changelog_costs_one_event_though_the_agent_swallows_the_error(
    world: World, unit: str
) -> None:
    rows = Table("rows", value=list, default=list)

    def book(payment: Payment) -> None:
        rows[payment.account].append("x" * payment.amount)

    async def by_event(payments: Any) -> Any:
        while True:
            try:
                async for payment in payments:
                    book(payment)
                    yield {"id": payment.id}
            except Exception:
                pass

    async def by_batch(payments: Any) -> Any:
        while True:
            try:
                async for batch in payments.batches():
                    for payment in batch:
                        book(payment)
                        yield {"id": payment.id}
            except Exception:
                pass

    agent_of(world, by_event if unit == "event" else by_batch, [rows])
    for n in range(5):
        world.pay("a1", id=f"p{n}", amount=2_000_000 if n == 2 else 10)
    world.start()
    await world.drained()
    assert [o["id"] for o in outputs(world)] == ["p0", "p1", "p3", "p4"]
    [(_, error, _)] = given_up(world)
    assert error.startswith("OutputRefused")


@pytest.mark.parametrize("how", ["read", "asked for", "deleted"])
async def test_a_store_that_cannot_be_read_is_no_missing_row_whatever_the_agent_makes_of_the_error(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from semel.state.store import StoreError
    from semel.state.table_rows import Rows

    seen = Table("seen", value=list, default=list)
    left = 2
    handled: list[str] = []

    async def settle(payments: Any) -> Any:
        async for payment in payments:
            handled.append(payment.id)
            try:
                if how == "deleted":
                    seen[payment.account + "-other"] = []
                    del seen[payment.account]
                elif how == "asked for":
                    assert payment.account in seen
                row = seen[payment.account]
            except Exception:
                row = []
            yield {"id": payment.id, "rows": len(row)}

    load = Rows.load

    def broken(self: Any, raw: bytes) -> bytes | None:
        nonlocal left
        if left:
            left -= 1
            raise StoreError("a block is damaged")
        return load(self, raw)

    agent_of(world, settle, [seen])
    worker = world.start()
    await world.until_running(worker)
    monkeypatch.setattr(Rows, "load", broken)
    world.pay("a1", id="p1")
    world.pay("a1", id="p2")
    await world.drained()
    assert [o["id"] for o in outputs(world)] == ["p1", "p2"]
    assert left == 0 and not given_up(world)
    # Each time that it could not be read was an attempt that is void.
    assert len(handled) == 4


@pytest.mark.parametrize("kind", ["coroutine", "generator"])
async def test_a_function_whose_result_nobody_awaits_or_iterates_over_is_told_so(world: World, kind: str) -> None:
    async def answer(payment: Payment) -> Any:
        return {"id": payment.id}

    def split(payment: Payment) -> Any:
        yield {"id": payment.id}

    give = answer if kind == "coroutine" else split

    def handle(payment: Payment) -> Any:
        return give(payment)

    agent_of(world, handle)
    world.start()
    world.pay("a1")
    await world.drained()
    [(_, error, _)] = given_up(world)
    assert ("nobody awaits it" if kind == "coroutine" else "nobody iterates over it") in error


def test_a_function_without_a_sink_whose_result_nobody_awaits_is_told_that_and_not_of_a_sink() -> None:
    async def store(payment: dict[str, Any]) -> None: ...

    async def split(payment: dict[str, Any]) -> Any:
        yield payment

    source = Topic("payments", value=dict)
    for agent, words in (
        (lambda payment: store(payment), "coroutine 'store'.*nobody awaits it.*async def"),  # noqa: PLW0108
        (lambda payment: Output(store(payment)), "coroutine 'store'.*nobody awaits it"),
        (lambda payment: split(payment), "nobody iterates over it.*take the stream"),  # noqa: PLW0108
        (lambda payment: payment, "returned a result, and 'payments' has no sink"),
    ):
        with PipelineTester(Pipeline(APP, source=source, agent=agent, retry=Retry(attempts=1))) as tester:
            tester.send({"id": "p1"})
            [letter] = tester.dead_letters()
            assert re.search(words, letter.error)


async def test_what_is_given_for_the_stream_and_cannot_be_gone_through_is_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def settle(payments: AsyncIterable[Payment]) -> Any:
        return [payments]

    agent_of(world, settle)
    worker = world.start()
    world.pay("a1")
    await asyncio.sleep(3)
    [error, *_] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert error.exc_info is not None
    said = str(error.exc_info[1])
    assert re.search(
        r"agent 'settle' was given the stream and gave \[.*neither awaited nor iterated over.*async for", said
    )
    assert not worker.over


async def test_a_body_that_never_gets_an_event_in_hand_ends_no_worker(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def settle(payments: Any) -> Any:
        raise SystemExit(0)
        async for payment in payments:
            yield {"id": payment.id}

    agent_of(world, settle)
    worker = world.start()
    world.pay("a1")
    await asyncio.sleep(3)
    assert not worker.over
    assert any("ended without an event in hand" in r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)


async def test_an_agent_that_returns_with_an_event_in_hand_is_named_once_and_counted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def settle(payments: Any) -> Any:
        try:
            async for payment in payments:
                if payment.amount == 13:
                    raise ValueError(payment.id)
                yield {"id": payment.id}
        except Exception:
            pass

    agent_of(world, settle)
    worker = world.start()
    await world.until_running(worker)
    caplog.clear()
    tp, offset = world.write({"id": "p1", "account": "a1", "amount": 13}, "a1")
    for amount in (1, 13, 1, 13):
        world.pay("a1", amount)
    await world.drained()
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"agent settle returned with {tp.topic}[{tp.partition}]@{offset} (key b'a1') in hand" in said
    assert "inside the loop, or let it out" in said
    assert b'semel_agent_returned_total{agent="settle",pipeline="payments"} 3.0' in EngineView(worker.engine).metrics()
    assert len(outputs(world)) == 2
    assert EngineView(worker.engine).readiness()[0]


# ---------------------------------------------------------------------- whose a batch's result is


def batching(world: World, results: Callable[[Any], Any]) -> None:
    async def settle(payments: Any) -> Any:
        async for batch in payments.batches():
            async for result in results(batch):
                yield result

    agent_of(world, settle)


async def run_batch(world: World, count: int = 4) -> list[tuple[str, str]]:
    """Ids of the results with the header `of` of the record that they say they come from."""
    for n in range(count):
        tp = TP("payments", 0)
        value = b'{"id": "p%d", "account": "a", "amount": 1}' % n
        world.cluster.write(tp, [(b"k%d" % n, value)], headers=[("of", b"p%d" % n)])
    world.start()
    await world.drained()
    found: list[tuple[str, str]] = []
    for log in world.cluster.committed("settlements"):
        for record in log:
            found.append((orjson.loads(record.value or b"")["id"], (dict(record.headers)["of"] or b"").decode()))
    return sorted(found)


async def test_a_result_that_is_yielded_when_the_batchs_loop_is_over_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def gathered(batch: Any) -> Any:
        for result in await asyncio.gather(*[answer(payment) for payment in batch]):
            yield result

    async def answer(payment: Payment) -> Any:
        return {"id": payment.id}

    batching(world, gathered)
    # Gone through one by one afterwards, each is the only one of its batch.
    assert await run_batch(world) == [(f"p{n}", f"p{n}") for n in range(4)]
    assert not given_up(world)
    [said] = [
        r.getMessage() for r in caplog.records if "is undone, and its events are handled one by one" in r.getMessage()
    ]
    assert said.startswith("a batch of 4 at payments[0]") and "Output(value, of=event)" in said


@pytest.mark.parametrize("says", [False, True])
@pytest.mark.parametrize("how", ["groups", "pairs"])
async def test_a_result_of_a_loop_over_what_reads_ahead_is_refused_unless_it_says_whose_it_is(
    world: World, caplog: pytest.LogCaptureFixture, how: str, says: bool
) -> None:
    """The loop over the batch is at the first event of the next group by then, and at the second one of a pair."""

    async def settle(batch: Any) -> Any:
        if how == "groups":
            for _, group in itertools.groupby(batch, key=lambda payment: int(payment.id[1:]) // 2):
                first, *_ = group
                yield Output({"id": first.id}, of=first if says else None)
        else:
            for first, _ in itertools.pairwise(batch):
                yield Output({"id": first.id}, of=first if says else None)

    batching(world, settle)
    # Alone an event is a group, and no pair.
    ids = {"groups": (0, 2), "pairs": (0, 1, 2)}[how] if says else {"groups": range(4), "pairs": ()}[how]
    assert await run_batch(world) == [(f"p{n}", f"p{n}") for n in ids]
    assert not given_up(world)
    assert ("handled one by one" in caplog.text) is not says


@pytest.mark.parametrize("how", ["value", "event", "record", "backwards"])
async def test_an_output_says_whose_result_it_is(world: World, how: str) -> None:
    async def of(batch: Any) -> Any:
        values, events, records = list(batch), batch.events, batch.records
        order = reversed(range(len(batch))) if how == "backwards" else range(len(batch))
        for n in order:
            whose = {"event": events, "record": records}.get(how, values)[n]
            yield Output({"id": values[n].id}, of=whose)

    batching(world, of)
    assert await run_batch(world) == [(f"p{n}", f"p{n}") for n in range(4)]


async def test_an_output_of_an_event_that_is_not_in_hand_is_refused(world: World) -> None:
    first: list[Any] = []

    async def of(batch: Any) -> Any:
        first.append(batch[0])
        yield Output({"id": batch[0].id}, of=first[0])

    batching(world, of)
    assert await run_batch(world, 1) == [("p0", "p0")]
    world.cluster.write(TP("payments", 0), [(b"k1", b'{"id": "p1", "account": "a", "amount": 1}')])
    await world.drained()
    assert [o["id"] for o in outputs(world)] == ["p0"]
    [(_, error, _)] = given_up(world)
    assert "names no event in hand" in error


@pytest.mark.parametrize("kind", ["values", "events", "function"])
def test_a_result_of_one_event_is_that_events_and_of_nothing_else(kind: str) -> None:
    def work(payment: dict[str, Any]) -> Output:
        event = current_event()
        assert event is not None
        given = {"value": payment, "record": event.record, "event": event, "other": {"id": "p2"}}
        return Output({"id": payment["id"]}, of=given[payment["of"]])

    async def values(stream: Any) -> Any:
        async for payment in stream:
            yield work(payment)

    async def events(stream: Any) -> Any:
        async for event in stream.events():
            yield work(event.value)

    agent = {"values": values, "events": events, "function": work}[kind]
    pipeline = Pipeline(
        APP, source=Topic("payments", value=dict), agent=agent, sink=Topic("out", value=dict), retry=Retry(attempts=1)
    )
    with PipelineTester(pipeline, partitions=1) as tester:
        tester.send_all({"id": of, "of": of} for of in ("value", "record", "event", "other"))
        assert [out.value["id"] for out in tester.outputs()] == ["record", "event"]
        letters = tester.dead_letters()
        assert len(letters) == 2
        for letter in letters:
            assert re.search(r"Output\(of=.*\): the agent has one event in hand, no batch.*leave of= out", letter.error)


async def test_a_loop_within_a_loop_over_a_batch_leaves_the_outer_one_where_it_is(world: World) -> None:
    async def nested(batch: Any) -> Any:
        for payment in batch:
            assert sum(p.amount for p in batch) == len(batch)
            yield {"id": payment.id}

    batching(world, nested)
    assert await run_batch(world) == [(f"p{n}", f"p{n}") for n in range(4)]


# ---------------------------------------------------------------------- threads


async def test_a_table_used_in_another_thread_is_refused_with_the_way_out(world: World) -> None:
    rows = Table("rows", value=int, default=int)

    def work(key: str) -> None:
        rows[key] += 1

    async def handle(payment: Payment) -> Any:
        await asyncio.to_thread(work, payment.account)
        return {"id": payment.id}

    agent_of(world, handle, [rows])
    world.start()
    world.pay("a1")
    await world.drained()
    [(reason, error, _)] = given_up(world)
    assert reason == "failed" and "another thread" in error and "after the await" in error
    assert not outputs(world)


# -- whose code it is


async def _next_by_wait_for(source: Any) -> Any:
    return await asyncio.wait_for(anext(source), 60)


async def _next_by_a_task(source: Any) -> Any:
    return await asyncio.create_task(anext(source))


async def _next_within_a_step(source: Any) -> Any:
    """As an eager task does: in a context that is not the agent's, and within a step of the agent's."""
    return await _InAnotherContext(anext(source))


class _InAnotherContext:
    def __init__(self, awaitable: Any) -> None:
        self._steps = awaitable.__await__()
        self._context = copy_context()

    def __await__(self) -> Any:
        while True:
            try:
                waits_for = self._context.run(self._steps.send, None)
            except StopIteration as done:
                return done.value
            yield waits_for


@pytest.mark.parametrize("ask", [_next_by_wait_for, _next_by_a_task, _next_within_a_step])
async def test_an_event_that_a_task_of_the_agents_asked_for_is_in_the_agents_hand(world: World, ask: Any) -> None:
    sums = Table("sums", value=int, default=int)

    async def run(stream: Any) -> Any:
        events = aiter(stream)
        while True:
            payment = await ask(events)
            sums[payment.account] += payment.amount
            # What the agent starts belongs to the event, too.
            await asyncio.create_task(_add_one(sums, payment.account))
            yield {"account": payment.account}

    agent_of(world, run, [sums])
    worker = world.start()
    await world.until_running(worker)
    for _ in range(5):
        world.pay(account="a", amount=10)
    await world.drained()
    assert len(outputs(world)) == 5
    assert not given_up(world)
    assert _sum_of(worker, "a") == 55


def _heard(task: asyncio.Future[Any]) -> None:
    """What a task ended with is nobody's affair."""
    if not task.cancelled():
        task.exception()


def _pump(note: Any) -> Any:
    async def run(stream: Any) -> Any:
        waiting: asyncio.Queue[Any] = asyncio.Queue()

        async def read() -> None:
            async for payment in stream:
                await waiting.put(payment)

        reader = asyncio.create_task(read())
        reader.add_done_callback(_heard)
        while not reader.done():
            payment = await waiting.get()
            note(payment)
            yield {"account": payment.account}

    return run


def _prefetch(note: Any) -> Any:
    async def run(stream: Any) -> Any:
        events = aiter(stream)
        coming = asyncio.ensure_future(anext(events))
        while True:
            payment = await coming
            coming = asyncio.ensure_future(anext(events))
            coming.add_done_callback(_heard)
            await asyncio.sleep(0.01)
            note(payment)
            yield {"account": payment.account}

    return run


def _loops_side_by_side(note: Any) -> Any:
    async def use(stream: Any) -> None:
        async for payment in stream:
            await asyncio.sleep(0.01)
            note(payment)

    async def run(stream: Any) -> None:
        await asyncio.gather(use(stream), use(stream))

    return run


def _reader_in_a_group(note: Any) -> Any:
    async def run(stream: Any) -> None:
        waiting: asyncio.Queue[Any] = asyncio.Queue()

        async def read() -> None:
            async for batch in stream.batches():
                await waiting.put(batch)

        async def work() -> None:
            while True:
                note(await waiting.get())

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(work())

    return run


@pytest.mark.parametrize("shape", [_pump, _prefetch, _loops_side_by_side, _reader_in_a_group])
async def test_an_event_is_not_done_because_a_task_asks_for_the_next_while_the_agent_is_at_it(
    world: World, shape: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sums = Table("sums", value=int, default=int)

    def note(payment: Any) -> None:
        sums["all"] += 1

    agent_of(world, shape(note), [sums], kind="stream")
    worker = world.start()
    await world.until_running(worker)
    for _ in range(5):
        world.pay(account="a", amount=10)
    await asyncio.sleep(20)
    # Nothing is done, nothing is dead-lettered, and it is said.
    assert not given_up(world) and not outputs(world)
    assert [t.counts["in"] for t in worker.engine.tasks.values()] == [0, 0]
    assert "asks for its next event in a task beside its own code" in caplog.text
    [idle] = worker.engine.lingering.unready_not_asking()
    assert "Iterate over the stream in the agent's own code" in idle.why


async def _whole_loop_by_wait_for(loop: Any) -> None:
    await asyncio.wait_for(loop, 600)


async def _whole_loop_by_a_task(loop: Any) -> None:
    await asyncio.shield(asyncio.create_task(loop))


@pytest.mark.parametrize("wait", [_whole_loop_by_wait_for, _whole_loop_by_a_task])
async def test_a_loop_in_a_task_that_the_agent_does_nothing_but_wait_for_is_the_agents(world: World, wait: Any) -> None:
    sums = Table("sums", value=int, default=int)

    async def loop(stream: Any) -> None:
        async for payment in stream:
            await asyncio.sleep(0.01)
            sums[payment.account] += payment.amount

    async def run(stream: Any) -> None:
        await wait(loop(stream))

    agent_of(world, run, [sums], kind="stream")
    worker = world.start()
    await world.until_running(worker)
    for _ in range(5):
        world.pay(account="a", amount=10)
    await world.drained()
    assert not given_up(world)
    assert _sum_of(worker, "a") == 50


async def test_an_event_asked_for_beside_a_timer_is_done_when_the_next_is_asked_for(world: World) -> None:
    """`wait` for the next event or a timer, whichever comes first: the event may come much later."""
    sums = Table("sums", value=int, default=int)

    async def run(stream: Any) -> None:
        events, coming = aiter(stream), None
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait({coming, asyncio.ensure_future(asyncio.sleep(0.1))}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                payment, coming = coming.result(), None
                await asyncio.sleep(0.01)
                sums[payment.account] += payment.amount

    agent_of(world, run, [sums], kind="stream")
    worker = world.start()
    await world.until_running(worker)
    for _ in range(5):
        world.pay(account="a", amount=10)
        await asyncio.sleep(0.5)
    await world.drained()
    assert not given_up(world)
    assert _sum_of(worker, "a") == 50


async def _add_one(table: Table, key: str) -> None:
    table[key] += 1


def _sum_of(worker: Any, account: str) -> int:
    task = next(t for t in worker.engine.tasks.values() if t.counts["in"])
    return task.tables["sums"].value(account)
