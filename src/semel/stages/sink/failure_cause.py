"""Failure cause: what made a record a dead letter, in words that stay the same over deploys, so that letters form groups.

Pure. A fingerprint has no line number, no path and nothing of the event in it: `ValueError@agents.settle:charge`,
`undecodable@payments:not-of-type-Payment`.
"""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, NamedTuple, cast

import semel
from semel.errors import described, errors_in
from semel.functions import behind

# What a person reads of a trace fits on two screens; a record's headers are read with every fetch of it.
TRACE_BYTES = 4_000
_MESSAGE_CHARACTERS = 500
# The kind of an error that cannot be asked.
UNREADABLE = "unreadable"
# Of a recursion the ends say what there is to know.
_OUTERMOST, _INNERMOST = 5, 20
# Causes of causes; the first ones are cut anyway.
_DEEPEST = 5
# Enough words to tell two mistakes apart, few enough that what comes from the event is mostly behind them.
_WORDS = 10
_FINGERPRINT_CHARACTERS = 200

_LIBRARIES = tuple(
    {str(Path(path)) + os.sep for name in ("stdlib", "platstdlib") if (path := sysconfig.get_path(name))}
    | {str(Path(place)) + os.sep for place in semel.__path__}
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
# Python 3.12 has no frame of its own for them.
_COMPREHENSION = re.compile(r"(\.<locals>)?\.<(listcomp|setcomp|dictcomp)>")
_NOT_A_WORD = re.compile(r"\W+")
# Values in a message, and numbers. What stands in backticks are names of fields and types.
_OF_THE_EVENT = re.compile(r"'[^']*'|\"[^\"]*\"|\S*\d\S*")


class Cause(NamedTuple):
    """`exception`: its type, qualified; `trace`: where it was raised, innermost last. Both empty where there was none."""

    fingerprint: str
    exception: str = ""
    trace: str = ""


class AgentCode(NamedTuple):
    """What is known of an agent's code. `package`: its top level, which is the user's wherever it is installed."""

    package: str
    place: str


def agent_code(run: Callable[..., Any], name: str) -> AgentCode:
    function = next((function for function, _ in reversed([*behind(run)])), None)
    module = "" if function is None else function.__module__ or ""
    package = module.partition(".")[0]
    if function is None or package in ("", "semel"):
        return AgentCode("", name)
    return AgentCode(package, f"{module}:{_function(function.__code__.co_qualname)}")


def cause_of(exc: BaseException, code: AgentCode) -> Cause:
    """What a failed attempt of an agent's event is known by again: the type of the error and the innermost function of the
    user's own code that it was raised in, else the agent's.

    Of a RecursionError the outermost one counts: how deep it got depends on who called. Of a group of errors the first counts.
    An error that does not even say what it is has a cause all the same.
    """
    try:
        return _known_cause(exc, code)
    except Exception:  # what an error is, its class may answer with code of its own
        return Cause(_text(f"{UNREADABLE}@{code.place}"))


def _known_cause(exc: BaseException, code: AgentCode) -> Cause:
    alone = exc
    while isinstance(alone, BaseExceptionGroup):
        alone = cast("BaseExceptionGroup[BaseException]", alone).exceptions[0]
    kind = _qualified(type(alone))
    places = _places(alone, code.package) or _places(exc, code.package) or [code.place]
    place = places[0] if isinstance(alone, RecursionError) else places[-1]
    return Cause(_text(f"{kind}@{place}"), _text(_qualified(type(exc))), _trace(exc))


def cause_without_exception(reason: str, topic: str, error: str) -> Cause:
    """Of records that no agent's code failed at: the reason, the topic, and how what is wrong begins."""
    words = _NOT_A_WORD.sub(" ", _OF_THE_EVENT.sub(" ", error[:_MESSAGE_CHARACTERS])).split()[:_WORDS]
    return Cause(_text(f"{reason}@{topic}:{'-'.join(words)}"))


def _text(name: str) -> str:
    """Whatever people call things: a header takes it."""
    return name[:_FINGERPRINT_CHARACTERS].encode(errors="backslashreplace").decode()


# -- places


def _frames(trace: TracebackType | None) -> Iterator[tuple[CodeType, int, str]]:
    """Outermost first: code, line, module."""
    while trace is not None:
        frame = trace.tb_frame
        yield frame.f_code, trace.tb_lineno, str(frame.f_globals.get("__name__") or "?")
        trace = trace.tb_next


def _places(exc: BaseException, package: str) -> list[str]:
    """The functions of the user's code that it went through, outermost first."""
    return [
        f"{module}:{_function(code.co_qualname)}"
        for code, _, module in _frames(exc.__traceback__)
        if not _is_library(code.co_filename) or (package and module.partition(".")[0] == package)
    ]


@lru_cache(maxsize=1_000)
def _is_library(file: str) -> bool:
    return file.startswith(("<", *_LIBRARIES)) or any(folder in file for folder in _INSTALLED)


def _function(name: str) -> str:
    return _COMPREHENSION.sub("", name)


def _qualified(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# -- the trace


def _trace(exc: BaseException) -> str:
    """At most `TRACE_BYTES`, of which the end is kept: the error itself, and where it was raised. Empty where it never was."""
    parts: list[str] = []
    at: BaseException | None = exc
    for _ in range(_DEEPEST):
        if at is None or at.__traceback__ is None:
            break
        parts.append(_raised(at))
        cause, context = at.__cause__, at.__context__
        if isinstance(at, BaseExceptionGroup):
            cause = errors_in(cast("BaseException", at))[0]
        at = cause if cause is not None or at.__suppress_context__ else context
        if at is not None and at.__traceback__ is not None:
            parts.append(
                "\nThat came of it.\n\n" if cause is not None else "\nWhile that was handled, this came of it.\n\n"
            )
    raw = "".join(reversed(parts)).encode(errors="backslashreplace")
    if len(raw) <= TRACE_BYTES:
        return raw.decode()
    return "…" + raw[3 - TRACE_BYTES :].decode(errors="ignore")


def _raised(exc: BaseException) -> str:
    frames = [*_frames(exc.__traceback__)]
    # What the engine does around the agent is the same each time.
    start = next((n for n, (code, _, _) in enumerate(frames) if not _is_library(code.co_filename)), 0)
    frames = frames[start:]
    lines = [_line(code.co_filename, code.co_qualname, number) for code, number, _ in frames[:_OUTERMOST]]
    if (left_out := len(frames) - _OUTERMOST - _INNERMOST) > 0:
        lines.append(f"  … {left_out} more …\n")
    innermost = frames[max(_OUTERMOST, len(frames) - _INNERMOST) :]
    lines += [_line(code.co_filename, code.co_qualname, number) for code, number, _ in innermost]
    return f"{''.join(lines)}{described(exc)[:_MESSAGE_CHARACTERS]}\n"


# By what it prints: two functions of two files that read the same are one code object to Python.
@lru_cache(maxsize=1_000)
def _line(file: str, name: str, number: int) -> str:
    source = linecache.getline(file, number).strip()
    place = f'  File "{file}", line {number}, in {name}\n'
    return f"{place}    {source}\n" if source else place
