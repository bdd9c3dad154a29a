"""An effect in the database of its inbox: it commits with its claim, or neither does. Each test with a loop and without."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

import semel
from semel import Inbox
from semel.effects import sessions
from semel.effects.once import Once
from semel.errors import (
    ConfigError,
    EffectConflict,
    EffectError,
    EffectInFlight,
    EffectUnsure,
    HandlingError,
    InboxSchemaError,
    InboxUnreachable,
)
from tests.effects.far_end import killed, started
from tests.effects.proxy import Proxy
from tests.postgres import Postgres

Book = Callable[..., Once]
INSERT = "INSERT INTO rows (key) VALUES (%s)"


@pytest.fixture(params=["sync", "async"])
def book(request: pytest.FixtureRequest) -> Book:
    """Carry out one effect: `statement`, else a row with the key; what `Once` says of it."""

    def sync(once: Once, key: str, statement: str = INSERT, outcome: Any = None) -> Once:
        with once as connection:
            connection.execute(statement.encode(), (key,) if "%s" in statement else None)
            once.outcome = outcome
        return once

    async def with_loop(inbox_once: Once, key: str, statement: str, outcome: Any) -> Once:
        try:
            async with inbox_once as connection:
                await connection.execute(statement.encode(), (key,) if "%s" in statement else None)
                inbox_once.outcome = outcome
        finally:
            await inbox_once._connections.close_async()  # pyright: ignore[reportPrivateUsage]
        return inbox_once

    def on_a_loop(once: Once, key: str, statement: str = INSERT, outcome: Any = None) -> Once:
        return asyncio.run(with_loop(once, key, statement, outcome))

    return sync if request.param == "sync" else on_a_loop


def rows(postgres: Postgres, key: str) -> int:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        [(n,)] = connection.execute("SELECT count(*) FROM rows WHERE key = %s", (key,)).fetchall()
    return n


def test_a_row_happens_once_and_its_outcome_is_remembered(
    postgres: Postgres, inbox: Inbox, book: Book, key: str
) -> None:
    said = [book(inbox.once(key, 1), key, outcome={"n": n}) for n in range(3)]
    assert [(once.repeated, once.outcome) for once in said] == [(False, {"n": 0}), (True, {"n": 0}), (True, {"n": 0})]
    assert rows(postgres, key) == 1


def test_semel_once_takes_the_inbox_of_the_settings(
    postgres: Postgres, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semel.effects.inbox._default", [])
    monkeypatch.delenv("SEMEL_INBOX_URL", raising=False)
    with pytest.raises(ConfigError, match="set SEMEL_INBOX_URL"):
        semel.once(key, 1)
    monkeypatch.setenv("SEMEL_INBOX_URL", postgres.url())
    assert [semel.once(key, 1).run(lambda: 5), semel.once(key, 1).run(lambda: 6)] == [5, 5]
    from semel.effects.inbox import default_inbox

    default_inbox().close()


def test_another_payload_is_refused(postgres: Postgres, inbox: Inbox, book: Book, key: str) -> None:
    book(inbox.once(key, {"amount": 10}), key)
    with pytest.raises(EffectConflict, match="another payload"):
        book(inbox.once(key, {"amount": 12}), key)
    assert rows(postgres, key) == 1


def test_scopes_and_steps_and_types_of_keys_are_apart(postgres: Postgres, inbox: Inbox, key: str) -> None:
    for once in (
        inbox.once(key, 1), inbox.once(key, 1, step="b"), inbox.once(key, 1, scope="a"), inbox.once(key.encode(), 1),
    ):  # fmt: skip
        with once as connection:
            connection.execute(INSERT, (key,))
    assert rows(postgres, key) == 4


def test_a_block_that_fails_leaves_nothing_and_the_next_call_does_it(
    postgres: Postgres, inbox: Inbox, book: Book, key: str
) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        book(inbox.once(key, 1), key, "SELECT 1 / 0")
    assert book(inbox.once(key, 1), key).repeated is False
    assert rows(postgres, key) == 1


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "ROLLBACK AND CHAIN"])
def test_a_block_that_ends_its_transaction_itself_is_an_error(
    inbox: Inbox, book: Book, key: str, statement: str
) -> None:
    with pytest.raises(EffectError, match="has ended its transaction"):
        book(inbox.once(key, 1), key, statement, outcome=1)


def test_a_failure_that_a_block_swallows_does_not_pass_for_an_effect(
    postgres: Postgres, inbox: Inbox, key: str
) -> None:
    with pytest.raises(EffectError, match="error was swallowed"), inbox.once(key, 1) as connection:
        connection.execute(INSERT, (key,))
        with suppress(psycopg.Error):
            connection.execute("SELECT 1 / 0")
    assert rows(postgres, key) == 0
    with inbox.once(key, 1) as connection:
        connection.execute(INSERT, (key,))
    assert rows(postgres, key) == 1


def test_an_outcome_that_is_no_json_undoes_the_effect(postgres: Postgres, inbox: Inbox, book: Book, key: str) -> None:
    with pytest.raises(HandlingError, match="is undone"):
        book(inbox.once(key, 1), key, outcome=object())
    assert rows(postgres, key) == 0


async def test_a_block_in_tasks_ends_as_any_where_its_effect_has_happened(inbox: Inbox, key: str) -> None:
    async with inbox.once(key, 1) as connection:
        await connection.execute("SELECT 1")
    went_on = False
    once = inbox.once(key, 1)
    async with once as connection, asyncio.TaskGroup() as tasks:
        tasks.create_task(_select(connection))
        await asyncio.sleep(1)
        went_on = True
    assert once.repeated
    assert not went_on
    await inbox.aclose()


async def _select(connection: Any) -> None:
    await connection.execute("SELECT 1")


def test_what_is_no_use_of_a_connection_is_raised_from_a_repeated_block(inbox: Inbox, book: Book, key: str) -> None:
    book(inbox.once(key, 1), key)
    with pytest.raises(KeyError), inbox.once(key, 1):
        raise KeyError(key)


@pytest.mark.parametrize("statement", [INSERT, "SELECT 1 / 0"], ids=["done", "failed"])
def test_one_of_them_is_for_one_use(inbox: Inbox, book: Book, key: str, statement: str) -> None:
    once = inbox.once(key, 1)
    with suppress(psycopg.errors.DivisionByZero):
        book(once, key, statement)
    with pytest.raises(EffectError, match="used before"):
        book(once, key)


async def test_what_else_goes_wrong_in_the_tasks_of_a_repeated_block_is_raised(inbox: Inbox, key: str) -> None:
    async with inbox.once(key, 1) as connection:
        await connection.execute("SELECT 1")

    async def fails() -> None:
        raise KeyError(key)

    with pytest.raises(ExceptionGroup) as told:
        async with inbox.once(key, 1) as connection, asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())
            tasks.create_task(_select(connection))
    assert [type(error) for error in told.value.exceptions] == [KeyError]
    await inbox.aclose()


def test_a_block_within_another_is_refused_since_the_end_of_one_would_leave_out_work_of_the_other(
    postgres: Postgres, inbox: Inbox, book: Book, key: str
) -> None:
    book(inbox.once([key, "b"], 1), key)
    for _ in range(2):
        with (
            pytest.raises(EffectError, match="begun in the block of"),
            inbox.once([key, "a"], 1) as a,
            inbox.once([key, "b"], 1) as b,
        ):
            b.execute(INSERT, (key,))
            a.execute(INSERT, (key,))
    assert rows(postgres, key) == 1
    # One after the other, and another thread's or one elsewhere within.
    with inbox.once([key, "a"], 1) as a:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(book, inbox.once([key, "c"], 1), key).result()
        a.execute(INSERT, (inbox.once([key, "d"], 1).run(lambda: key),))
    book(inbox.once([key, "e"], 1), key)
    assert rows(postgres, key) == 4


async def test_a_task_that_outlives_the_block_it_was_started_in_has_blocks_of_its_own(
    postgres: Postgres, inbox: Inbox, key: str
) -> None:
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        async with inbox.once([key, 2], 1) as connection:
            await connection.execute(INSERT, (key,))

    async with inbox.once([key, 1], 1) as connection:
        await connection.execute(INSERT, (key,))
        task = asyncio.create_task(later())
    over.set()
    await task
    await inbox.aclose()
    assert rows(postgres, key) == 2


def test_a_connection_that_is_used_after_its_repeated_block_is_an_error(inbox: Inbox, book: Book, key: str) -> None:
    book(inbox.once(key, 1), key)
    with inbox.once(key, 1) as connection:
        pass
    with pytest.raises(EffectError, match="used after its block"):
        connection.execute(INSERT, (key,))


def test_what_a_block_makes_of_its_connections_rows_and_cursors_is_its_own(postgres: Postgres, key: str) -> None:
    inbox = Inbox(postgres.url(), pool_size=1)
    for repeated in (False, True):
        once = inbox.once(key, 1)
        with once as connection:
            assert connection.execute("SELECT %s::int", (1,)).fetchall() == [(1,)]
            connection.row_factory, connection.cursor_factory = dict_row, psycopg.RawCursor
            connection.execute("INSERT INTO rows (key) VALUES ($1)", (key,))
            once.outcome = connection.execute("SELECT 1 AS n").fetchone()
        assert (once.repeated, once.outcome) == (repeated, {"n": 1})
    inbox.close()
    assert rows(postgres, key) == 1


# -- processes that die, and many at once


@pytest.mark.parametrize(("point", "before"), [("before", 0), ("during", 0), ("after", 1)])
def test_a_process_killed_at_any_point_leaves_a_row_once(
    postgres: Postgres, inbox: Inbox, book: Book, key: str, point: str, before: int
) -> None:
    killed(f"inbox={postgres.url()}", Path(os.devnull), key, point)
    assert rows(postgres, key) == before
    book(inbox.once(key, {"for": key}), key)
    assert rows(postgres, key) == 1


def test_eight_processes_at_once_make_one_row(postgres: Postgres, key: str) -> None:
    processes = [started(f"inbox={postgres.url()}", Path(os.devnull), key, "run") for _ in range(8)]
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{ {'receipt': key} }\n"] * 8
    assert rows(postgres, key) == 1


def test_eight_threads_and_hundred_keys_make_hundred_rows(postgres: Postgres, inbox: Inbox, key: str) -> None:
    def work(n: int) -> None:
        with inbox.once([key, n % 100], 1) as connection:
            connection.execute(INSERT, (key,))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(800)))
    assert rows(postgres, key) == 100


def test_a_process_that_hangs_holds_its_key_for_so_long_and_no_longer(postgres: Postgres, key: str) -> None:
    frozen = started(f"inbox={postgres.url(options='-c statement_timeout=0')}", Path(os.devnull), key, "during")
    assert frozen.stdout is not None
    assert frozen.stdout.readline() == "during\n"
    frozen.send_signal(signal.SIGSTOP)
    inbox = Inbox(postgres.url(), timeout=timedelta(milliseconds=200))
    try:
        with pytest.raises(EffectInFlight, match=r"was not over after 0\.2 s"), inbox.once(key, {"for": key}):
            pass
        # What `idle` does in a minute.
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            )
        with inbox.once(key, {"for": key}) as mine:
            mine.execute(INSERT, (key,))
    finally:
        frozen.kill()
        frozen.wait()
        frozen.stdout.close()
        inbox.close()
    assert rows(postgres, key) == 1


def test_a_transaction_in_which_nothing_is_asked_is_ended_by_the_server(postgres: Postgres, key: str) -> None:
    inbox = Inbox(postgres.url(), idle=timedelta(milliseconds=100))
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout), inbox.once(key, 1) as connection:
        connection.execute(INSERT, (key,))
        time.sleep(0.5)
        connection.execute("SELECT 1")
    inbox.close()
    assert rows(postgres, key) == 0


def test_a_forked_child_has_connections_of_its_own(postgres: Postgres, inbox: Inbox, key: str) -> None:
    with inbox.once([key, "parent"], 1) as connection:
        connection.execute(INSERT, (key,))
    parents = connection.info.backend_pid
    child = os.fork()
    if not child:
        code = 1
        try:
            with inbox.once([key, "child"], 1) as connection:
                connection.execute(INSERT, (key,))
                code = int(connection.info.backend_pid == parents)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with inbox.once([key, "parent again"], 1) as connection:
        connection.execute(INSERT, (key,))
    assert rows(postgres, key) == 3


# -- the server


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "killed"])
def test_a_server_that_was_restarted_is_found_again(
    postgres: Postgres, inbox: Inbox, book: Book, key: str, how: signal.Signals
) -> None:
    book(inbox.once(key, 1), key)
    postgres.restart(how)
    assert book(inbox.once(key, 1), key).repeated is True
    assert book(inbox.once([key], 1), key).repeated is False
    assert rows(postgres, key) == 2


def test_a_server_that_dies_in_the_middle_undoes_it_and_the_next_call_does_it(
    postgres: Postgres, inbox: Inbox, key: str
) -> None:
    with pytest.raises(psycopg.Error), inbox.once(key, 1) as connection:
        connection.execute(INSERT, (key,))
        postgres.restart(signal.SIGQUIT)
        connection.execute("SELECT 1")
    assert rows(postgres, key) == 0
    with inbox.once(key, 1) as connection:
        connection.execute(INSERT, (key,))
    assert rows(postgres, key) == 1


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[tuple[Proxy, str]]:
    with tempfile.TemporaryDirectory(prefix="semel-px-", dir="/tmp") as folder:
        proxy = Proxy(postgres.folder, Path(folder))
        yield proxy, make_conninfo(postgres.url(), host=folder)
        proxy.close()


@pytest.mark.parametrize("restarts", [False, True], ids=["connection lost", "server killed"])
def test_an_answer_to_a_commit_that_is_lost_is_found_out(
    postgres: Postgres, proxy: tuple[Proxy, str], book: Book, key: str, restarts: bool
) -> None:
    between, url = proxy
    inbox = Inbox(url)
    between.lose = "answer"
    if restarts:
        between.then = lambda: postgres.restart(signal.SIGQUIT)
    once = book(inbox.once(key, 1), key, outcome=7)
    assert between.lost == 1
    assert (once.repeated, once.outcome) == (False, 7)
    assert book(inbox.once(key, 1), key).repeated is True
    inbox.close()
    assert rows(postgres, key) == 1


def test_a_commit_that_never_arrived_has_not_happened_and_says_so(
    postgres: Postgres, proxy: tuple[Proxy, str], book: Book, key: str
) -> None:
    between, url = proxy
    inbox = Inbox(url)
    between.lose = "request"
    with pytest.raises(psycopg.OperationalError):
        book(inbox.once(key, 1), key)
    assert between.lost == 1
    assert rows(postgres, key) == 0
    assert book(inbox.once(key, 1), key).repeated is False
    inbox.close()
    assert rows(postgres, key) == 1


@pytest.mark.parametrize("what", ["request", "answer"])
@pytest.mark.parametrize("marked", [b"INSERT INTO semel.effects", b"UPDATE semel.effects", b"pg_try_advisory_lock"])
def test_any_exchange_of_an_effect_elsewhere_may_be_lost(
    proxy: tuple[Proxy, str], key: str, what: Literal["request", "answer"], marked: bytes
) -> None:
    between, url = proxy
    inbox, calls = Inbox(url), list[str]()

    def charge() -> str:
        calls.append(key)
        return "charged"

    between.marked, between.lose = marked, what
    once = inbox.once(key, 1)
    assert once.run(charge) == "charged"
    assert (between.lost, once.repeated) == (1, False)
    assert inbox.once(key, 1).run(charge) == "charged"
    inbox.close()
    assert calls == [key]


def test_where_nobody_can_be_asked_about_a_commit_the_next_call_finds_out(
    postgres: Postgres, proxy: tuple[Proxy, str], book: Book, key: str
) -> None:
    between, url = proxy
    inbox = Inbox(url, timeout=timedelta(milliseconds=300))
    between.lose, between.then = "answer", postgres.stop
    try:
        with pytest.raises((EffectUnsure, InboxUnreachable)):
            book(inbox.once(key, 1), key)
    finally:
        postgres.start()
    assert book(inbox.once(key, 1), key).repeated is True
    inbox.close()
    assert rows(postgres, key) == 1


def test_a_server_that_is_away_is_named_without_its_password(postgres: Postgres, key: str) -> None:
    url = make_conninfo(postgres.url(), host="/tmp/semel-nobody-here", password="s3cret")
    inbox = Inbox(url, timeout=timedelta(milliseconds=200))
    with (
        pytest.raises(InboxUnreachable, match="no connection to the inbox at /tmp/semel-nobody-here") as told,
        inbox.once(key, 1),
    ):
        pass
    inbox.close()
    assert "s3cret" not in str(told.value) + repr(inbox)


def test_a_url_that_cannot_be_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="none that PostgreSQL's clients know") as told:
        Inbox("postgresql+psycopg://ada:s3cret@host/db")
    assert "s3cret" not in str(told.value)


def test_a_pool_that_is_used_up_is_said(postgres: Postgres, key: str) -> None:
    inbox = Inbox(postgres.url(), pool_size=1, timeout=timedelta(milliseconds=300))
    with inbox.once([key, 1], 1) as outer:
        outer.execute(INSERT, (key,))

        def other() -> None:
            with inbox.once([key, 2], 1):
                pass

        with (
            ThreadPoolExecutor(1) as threads,
            pytest.raises(InboxUnreachable, match="all 1 of this process are in use"),
        ):
            threads.submit(other).result()
    inbox.close()
    assert rows(postgres, key) == 1


def test_a_serialization_failure_undoes_the_effect_and_the_next_call_does_it(postgres: Postgres, key: str) -> None:
    inbox = Inbox(postgres.url(), isolation="serializable")
    with psycopg.connect(postgres.url(), autocommit=True) as other:
        other.execute("INSERT INTO counters VALUES (%s, 0)", (key,))
        add = "UPDATE counters SET n = n + 1 WHERE name = %s"
        with pytest.raises(psycopg.errors.SerializationFailure), inbox.once(key, 1) as connection:
            connection.execute("SELECT n FROM counters WHERE name = %s", (key,))
            other.execute(add, (key,))
            connection.execute(add, (key,))
        for _ in range(2):
            with inbox.once(key, 1) as connection:
                connection.execute(add, (key,))
        assert other.execute("SELECT n FROM counters WHERE name = %s", (key,)).fetchall() == [(2,)]
    inbox.close()


def test_of_two_at_once_under_serializable_isolation_one_happens(postgres: Postgres, key: str) -> None:
    inbox = Inbox(postgres.url(), isolation="serializable")
    claimed = threading.Event()

    def other() -> None:
        with inbox.once(key, 1) as connection:
            claimed.set()
            connection.execute(INSERT, (key,))
            time.sleep(0.2)

    thread = threading.Thread(target=other)
    thread.start()
    assert claimed.wait(10)
    repeated = None
    while repeated is None:
        once = inbox.once(key, 1)
        try:
            with once as connection:
                connection.execute(INSERT, (key,))
        except psycopg.errors.SerializationFailure:
            continue
        repeated = once.repeated
    thread.join()
    inbox.close()
    assert repeated is True
    assert rows(postgres, key) == 1


async def test_a_cancelled_handler_leaves_nothing_and_no_connection_behind(
    postgres: Postgres, inbox: Inbox, key: str
) -> None:
    async def slow() -> None:
        async with inbox.once(key, 1) as connection:
            await connection.execute(INSERT, (key,))
            await connection.execute("SELECT pg_sleep(30)")

    for _ in range(12):
        task = asyncio.create_task(slow())
        await asyncio.sleep(0.03)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with inbox.once(key, 1) as connection:
        await connection.execute(INSERT, (key,))
    await inbox.aclose()
    assert rows(postgres, key) == 1


async def test_a_cancellation_after_the_effect_waits_until_it_is_remembered(
    postgres: Postgres, inbox: Inbox, key: str
) -> None:
    happened = asyncio.Event()
    async with await psycopg.AsyncConnection.connect(postgres.url()) as other:

        async def charge() -> str:
            # The memory of it has to wait.
            await other.execute("SELECT 1 FROM semel.effects WHERE id = %s FOR UPDATE", (key.encode(),))
            happened.set()
            return "charged"

        task = asyncio.create_task(inbox.once(key, 1).run_async(charge))
        await happened.wait()
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.1)
        assert not task.done()
        await other.rollback()
        with pytest.raises(asyncio.CancelledError):
            await task
        once = inbox.once(key, 1)
        assert await once.run_async(charge) == "charged"
        assert once.repeated
    await inbox.aclose()


async def test_a_cancellation_before_the_effect_began_leaves_it_not_unsure(
    postgres: Postgres, inbox: Inbox, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = sessions.asked_async

    async def cancelled(connection: Any, asking: Any) -> Any:
        monkeypatch.setattr(sessions, "asked_async", asked)
        await asked(connection, asking)
        assert [effect.key.id for effect in await asyncio.to_thread(inbox.stranded)].count(key.encode()) == 1
        raise asyncio.CancelledError

    monkeypatch.setattr(sessions, "asked_async", cancelled)
    with pytest.raises(asyncio.CancelledError):
        await inbox.once(key, 1).run_async(lambda: asyncio.sleep(0, "charged"))
    assert [effect.key.id for effect in inbox.stranded()].count(key.encode()) == 0
    assert await inbox.once(key, 1).run_async(lambda: asyncio.sleep(0, "charged")) == "charged"
    await inbox.aclose()


async def test_no_cancellation_of_an_effect_elsewhere_is_swallowed(postgres: Postgres, inbox: Inbox, key: str) -> None:
    slow = Inbox(postgres.url(), pool_size=1)
    await slow.once([key, "first"], 1).run_async(lambda: asyncio.sleep(0, "charged"))
    for n in range(60):
        # Sooner or later it meets each exchange with the server, the last one included, which gives the lock back.
        task = asyncio.create_task(slow.once([key, n], 1).run_async(lambda: asyncio.sleep(0, "charged")))
        await asyncio.sleep(n / 10_000)
        cancelled = task.cancel()
        said = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(said, asyncio.CancelledError) if cancelled else said == "charged"
    await slow.aclose()


def test_a_connection_that_breaks_while_an_effect_runs_costs_nothing(
    postgres: Postgres, inbox: Inbox, key: str
) -> None:
    def charge() -> str:
        postgres.restart(signal.SIGQUIT)
        return "charged"

    assert inbox.once(key, 1).run(charge) == "charged"
    assert inbox.once(key, 1).run(charge) == "charged"


# -- clocks, tables, what is kept


def test_no_clock_of_a_client_counts(
    postgres: Postgres, inbox: Inbox, book: Book, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    for years in (10, -10):
        monkeypatch.setattr(time, "time", lambda years=years: real() + years * 31_536_000)
        book(inbox.once([key, years], 1), key)
        assert book(inbox.once([key, years], 1), key).repeated is True
        inbox.purge(timedelta(days=1))
        assert book(inbox.once([key, years], 1), key).repeated is True


def test_what_is_old_is_forgotten_and_what_is_not_done_stays(postgres: Postgres, inbox: Inbox, key: str) -> None:
    assert inbox.once([key, "old"], 1).run(lambda: 1) == 1
    with pytest.raises(KeyError):
        inbox.once([key, "unsure"], 1).run(lambda: {}[1])
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(
            "UPDATE semel.effects SET done_at = done_at - interval '2 days', claimed_at = claimed_at - interval '2 days'"
        )
    assert inbox.once([key, "new"], 1).run(lambda: 2) == 2
    assert inbox.purge(timedelta(days=1)) > 0
    assert inbox.once([key, "new"], 1).run(lambda: 3) == 2
    assert inbox.once([key, "old"], 1).run(lambda: 4) == 4
    with pytest.raises(EffectUnsure):
        inbox.once([key, "unsure"], 1).run(lambda: 5)


@pytest.mark.parametrize(("said", "then"), [({"id": 9}, {"id": 9}), (semel.NOT_DONE, "done now")])
def test_a_person_settles_what_is_unsure(inbox: Inbox, key: str, said: Any, then: Any) -> None:
    with pytest.raises(KeyError):
        inbox.once(key, 1).run(lambda: {}[1])
    with pytest.raises(EffectUnsure, match=r"semel inbox settle ([0-9a-f]{64})"):
        inbox.once(key, 1).run(lambda: "again")
    [effect] = [effect for effect in inbox.stranded() if effect.key.id == key.encode()]
    inbox.settle(effect.key, said)
    assert inbox.once(key, 1).run(lambda: "done now") == then
    with pytest.raises(EffectError, match="no effect"):
        inbox.settle(effect.key, said)


def test_what_is_being_carried_out_is_settled_by_nobody(inbox: Inbox, key: str) -> None:
    def settled_meanwhile() -> str:
        [effect] = [effect for effect in inbox.stranded() if effect.key.id == key.encode()]
        with pytest.raises(EffectError, match="being carried out just now"):
            inbox.settle(effect.key, semel.NOT_DONE)
        return "done"

    assert inbox.once(key, 1).run(settled_meanwhile) == "done"


def test_tables_that_are_missing_older_or_newer_are_a_clear_error(postgres: Postgres, book: Book, key: str) -> None:
    inbox = Inbox(postgres.url(), schema=f"s{key}")
    with pytest.raises(InboxSchemaError, match=rf"schema s{key} has no tables of an inbox.*semel inbox apply"):
        book(inbox.once(key, 1), key)
    assert len(inbox.plan().statements) > 3
    assert inbox.plan() == inbox.apply()
    assert inbox.plan().statements == ()
    book(inbox.once(key, 1), key)
    inbox.close()
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        for version, words in ((0, "has no tables"), (99, "install a newer semel")):
            connection.execute(f"UPDATE s{key}.inbox_version SET version = {version}".encode())
            other = Inbox(postgres.url(), schema=f"s{key}")
            with pytest.raises(InboxSchemaError, match=words):
                book(other.once(key, 1), key)
            other.close()
        connection.execute(f"DROP SCHEMA s{key} CASCADE".encode())


def test_tables_that_go_while_it_runs_are_a_clear_error(postgres: Postgres, book: Book, key: str) -> None:
    inbox = Inbox(postgres.url(), schema=f"s{key}")
    inbox.apply()
    book(inbox.once(key, 1), key)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA s{key} CASCADE".encode())
    with pytest.raises(InboxSchemaError, match="are gone"):
        book(inbox.once(key, 1), key)
    inbox.close()


def test_two_that_make_the_tables_at_once_make_them_once(postgres: Postgres, key: str) -> None:
    def make(_: int) -> int:
        inbox = Inbox(postgres.url(), schema=f"s{key}")
        done = len(inbox.apply().statements)
        inbox.close()
        return done

    with ThreadPoolExecutor(4) as threads:
        assert sorted(map(bool, threads.map(make, range(4)))) == [False, False, False, True]
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA s{key} CASCADE".encode())
