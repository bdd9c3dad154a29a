"""What made a record a dead letter is known again by the kind of error and the place in the user's code."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import textwrap
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from semel import Reject
from semel.stages.sink.failure_cause import (
    TRACE_BYTES,
    AgentCode,
    Cause,
    agent_code,
    cause_of,
    cause_without_exception,
)

CODE = AgentCode("shop", "shop.agents:settle")


class Declined(Exception):
    pass


def failed(run: Callable[[], Any], code: AgentCode = CODE) -> Cause:
    try:
        run()
    except BaseException as exc:
        return cause_of(exc, code)
    raise AssertionError("it did not fail")


async def _settle(what: Callable[[], Awaitable[Any]]) -> None:
    await what()


def charge(amount: Any) -> int:
    return int(amount)


def test_the_innermost_function_of_the_users_code_counts() -> None:
    def settle() -> None:
        charge("x")

    assert failed(settle).fingerprint == f"ValueError@{__name__}:charge"


def test_what_fails_in_a_library_counts_for_the_user_who_called_it() -> None:
    def settle() -> None:
        json.loads("{")

    cause = failed(settle)
    assert cause.fingerprint.startswith("json.decoder.JSONDecodeError@")
    assert cause.fingerprint.endswith(":test_what_fails_in_a_library_counts_for_the_user_who_called_it.<locals>.settle")
    assert cause.exception == "json.decoder.JSONDecodeError"
    assert "raw_decode" in cause.trace, "the trace has the library's frames, too"


@pytest.mark.parametrize("error", [Declined("no"), Reject("not ours")])
def test_the_type_of_an_error_is_qualified(error: Exception) -> None:
    def settle() -> None:
        raise error

    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    cause = failed(settle)
    assert cause.exception == kind
    assert cause.fingerprint.startswith(f"{kind}@")


async def test_what_fails_behind_an_await_counts_where_it_fails() -> None:
    async def pay() -> None:
        await asyncio.sleep(0)
        charge("x")

    async def beside() -> None:
        await asyncio.gather(asyncio.create_task(pay()))

    for way in (pay, beside):
        with pytest.raises(ValueError, match="invalid literal") as raised:
            await _settle(way)
        assert cause_of(raised.value, CODE).fingerprint == f"ValueError@{__name__}:charge"


async def test_of_a_group_of_errors_the_first_counts() -> None:
    async def pay() -> None:
        charge("x")

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as group:
            group.create_task(pay())
    cause = cause_of(raised.value, CODE)
    assert cause.fingerprint == f"ValueError@{__name__}:charge"
    assert cause.exception == "ExceptionGroup"
    assert "in charge\n" in cause.trace and "ValueError: invalid literal" in cause.trace
    assert cause.trace.index("in charge\n") < cause.trace.index("ExceptionGroup: unhandled errors in a TaskGroup")


@pytest.mark.parametrize("frames_before", [0, 7])
def test_a_recursion_is_the_same_however_deep_it_began(frames_before: int) -> None:
    def ping(n: int) -> int:
        return pong(n + 1)

    def pong(n: int) -> int:
        return len(str(ping(n + 1)))

    def settle(left: int) -> int:
        return settle(left - 1) if left else ping(0)

    cause = failed(partial(settle, frames_before))
    assert cause.fingerprint == f"RecursionError@{__name__}:failed"
    assert "more …" in cause.trace
    assert len(cause.trace.encode()) <= TRACE_BYTES


def test_a_recursion_that_ends_in_another_error_counts_once() -> None:
    def walk(n: int) -> int:
        return walk(n - 1) if n else charge("x")

    fingerprints = {failed(partial(walk, n)).fingerprint for n in (0, 1, 50)}
    assert fingerprints == {f"ValueError@{__name__}:charge"}


def test_comprehensions_and_wrapped_functions_have_no_place_of_their_own() -> None:
    def settle() -> list[float]:
        return [1 / n for n in (1, 0)]

    assert failed(settle).fingerprint.endswith(".<locals>.settle")


def installed(folder: Path, name: str, source: str) -> ModuleType:
    file = folder / f"{name.replace('.', '_')}.py"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_fingerprint_outlives_new_lines_and_another_place_on_disk(tmp_path: Path) -> None:
    source = """
    def settle(event):
        return event["amount"] / 0
    """
    first = installed(tmp_path / "a", "shop.agents", source)
    later = installed(tmp_path / "b" / "site-packages" / "x", "shop.agents", f"\n\n{source}")
    code = agent_code(first.settle, "settle")
    assert code == CODE
    causes = [failed(lambda made=made: made.settle({"amount": 1}), code) for made in (first, later)]
    assert {cause.fingerprint for cause in causes} == {"ZeroDivisionError@shop.agents:settle"}
    assert causes[0].trace != causes[1].trace


def test_where_no_code_of_the_users_is_in_it_the_agent_counts() -> None:
    exc = Declined("never raised")
    cause = cause_of(exc, CODE)
    assert cause == Cause(f"{__name__}.Declined@shop.agents:settle", f"{__name__}.Declined", "")


def test_an_agent_is_placed_through_its_decorators() -> None:
    assert agent_code(partial(charge, "x"), "charge") == AgentCode(__name__.partition(".")[0], f"{__name__}:charge")
    assert agent_code(print, "print") == AgentCode("", "print")


def test_a_trace_has_the_lines_and_the_causes_and_is_cut_at_its_beginning() -> None:
    def settle(text: str) -> None:
        try:
            charge("x")
        except ValueError as exc:
            raise Declined(text) from exc

    trace = failed(partial(settle, "no")).trace
    assert "return int(amount)" in trace
    assert trace.index("ValueError: invalid literal") < trace.index("That came of it") < trace.index("Declined: no")
    assert trace.endswith("Declined: no\n")
    long = failed(partial(settle, "ł" * 100_000)).trace
    assert len(long.encode()) <= TRACE_BYTES


@pytest.mark.parametrize("text", ["\ud800", "\x00", "ł" * 10_000])
def test_a_trace_is_text_whatever_the_error_says(text: str) -> None:
    def settle() -> None:
        raise Declined(text)

    failed(settle).trace.encode()


def test_whatever_an_error_or_a_module_is_called_it_is_text() -> None:
    odd: Any = type("Odd", (Exception,), {"__module__": "\ud800" * 300})
    code = compile("def settle(kind):\n    raise kind()", "settle.py", "exec")
    module: dict[str, Any] = {"__name__": 7}
    exec(code, module)
    cause = failed(partial(module["settle"], odd))
    assert all(text and text.encode() for text in cause)


def test_without_an_exception_what_comes_from_the_event_is_no_part_of_it() -> None:
    def fingerprint(error: str) -> str:
        return cause_without_exception("undecodable", "payments", error).fingerprint

    assert fingerprint("not of type Payment: Object missing required field `amount`") == (
        "undecodable@payments:not-of-type-Payment-Object-missing-required-field-amount"
    )
    assert fingerprint("event time 17 is late, said 'account-1'") == fingerprint("event time 99 is late, said 'b'")
    assert cause_without_exception("clock", "payments", "").fingerprint == "clock@payments:"


class Hollow(ExceptionGroup[Exception]):
    """Its class answers what is asked of a group, and wrongly."""

    @property
    def exceptions(self) -> Any:
        return ()


def test_an_error_that_cannot_be_asked_what_it_is_has_a_cause_all_the_same() -> None:
    def settle() -> None:
        raise Hollow("nothing", [ValueError("x")])

    assert failed(settle) == Cause("unreadable@shop.agents:settle")


def test_functions_of_two_files_that_read_the_same_are_told_apart_in_a_trace(tmp_path: Path) -> None:
    traces: list[str] = []
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("def settle():\n    raise ValueError('x')\n")
        scope: dict[str, Any] = {"__name__": "shop.agents"}
        exec(compile((tmp_path / name).read_text(), str(tmp_path / name), "exec"), scope)
        traces.append(failed(scope["settle"]).trace)
    assert "one.py" in traces[0] and "one.py" not in traces[1] and "two.py" in traces[1]
