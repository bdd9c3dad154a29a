"""Every error semel raises, one family, grouped by the phase it belongs to.

A message names the thing, the value and the next step.
"""

from __future__ import annotations

from typing import cast


class SemelError(Exception):
    """The root of the family."""


# -- declaring


class DeclarationError(SemelError):
    """A pipeline, topic, table or dedup rule cannot mean what it says; raised where it is declared."""


class ConfigError(SemelError):
    """A setting is unknown, malformed, or contradicts another; raised before anything runs."""


# -- reading


class DecodeError(SemelError):
    """Bytes do not hold what the topic declares; the record goes to the dead letters."""


# -- handling


class HandlingError(SemelError):
    """An event cannot be handled as asked; raised in the handler, which may catch it."""


class WrongPartition(HandlingError):
    """A table key belongs to another partition than the event in hand."""


class OutsideEvent(HandlingError):
    """A table was written, or an output emitted, where no event is in hand."""


class OutputRefused(HandlingError):
    """An output cannot be written to its topic: size, key, partition or timestamp (protocol rule 2)."""


class AmbiguousResult(OutputRefused):
    """A result of a batch does not say which of its events it belongs to."""


class Reject(SemelError):
    """Raised by an agent: this event goes straight to the dead letters, without retries."""


class HandlerTimeout(SemelError, TimeoutError):
    """Handling an event took longer than its pipeline's `timeout`; it was cancelled, and counts as a failed attempt.

    A TimeoutError as well, so that `Retry(transient=(TimeoutError,))` means it, too.
    """

    def __init__(self, timeout_s: float, place: str) -> None:
        super().__init__(
            f"its handler was not done after {timeout_s:g} s and was cancelled, at {place}; Pipeline(timeout=) says for how long "
            "it may take"
        )


class SessionLost(SemelError):
    """Handling an event blocked the event loop for so long that the group's session was over: it was handled for nobody."""

    def __init__(self, times: int) -> None:
        super().__init__(
            f"its handler blocked the event loop for longer than max_block_ms and session_timeout_ms, "
            f"{'once' if times == 1 else f'{times} times'}: each time "
            "the group gave the partition away and nothing of it counted; await what takes long, run it in a thread "
            "(asyncio.to_thread), or raise max_block_ms"
        )


class ProcessEnded(SemelError):
    """The process died each time an event was handled, and nothing else was in hand."""

    def __init__(self, times: int) -> None:
        self.times = times
        super().__init__(
            f"its handler ended the process {times} times in a row, with nothing else in hand; by what is not known: an exit "
            "(os._exit), a fault in native code, a signal, or more memory than there is. The worker's log and the machine's say "
            "more"
        )


class PipelineHalted(SemelError):
    """An agent's events have failed alike for as long as its worker is to wait for that to end (`halted_timeout_ms`)."""

    def __init__(self, agent: str, failed: int, seconds: float, error: str) -> None:
        super().__init__(
            f"agent {agent} has halted for {seconds:.0f} s, and this worker ends, as halted_timeout_ms says: {failed} events "
            f"failed alike and none succeeded, the last with {error}. None of them is lost; mend what it depends on, or its "
            "code, and start it again"
        )


class StaleIncarnation(BaseException):
    """Work of an incarnation that is over tried to write (protocol rule 5).

    A BaseException, so that a handler's `except Exception` does not keep a zombie alive.
    """


# -- committing


class CommitError(SemelError):
    """An epoch could not be committed."""


class CarryOverFull(CommitError):
    """Too much work without a source record waits for its commit; the caller should slow down."""


class InstanceTaken(CommitError):
    """Another live worker runs under this instance name; exit code 4."""


def described(exc: BaseException) -> str:
    """Kind and message of an error that other people's code raised; its message may be code, too, and fail."""
    if type(exc).__name__ == "CancelledError" and not exc.args:
        return "CancelledError: what was awaited, or who awaited it, was cancelled by something else than the engine"
    try:
        first = errors_in(exc)[0]
        # Of a group the message is a number.
        return f"{type(exc).__name__}: {exc}" + ("" if first is exc else f": {described(first)}")
    except BaseException as again:
        return f"{type(exc).__name__} (its message cannot be read: {type(again).__name__})"


# A group of groups may be of any size, and one that answers for itself without end.
_MOST_OF_A_GROUP = 1_000


def errors_in(exc: BaseException) -> tuple[BaseException, ...]:
    """The errors that a group is of, as a `TaskGroup` raises one; an error that is no group, or tells of none, by itself."""
    errors, left, looks = list[BaseException](), [exc], 0
    try:
        while left and looks < _MOST_OF_A_GROUP:
            looks += 1
            one = left.pop()
            if isinstance(one, BaseExceptionGroup):
                left += reversed(cast("BaseExceptionGroup[BaseException]", one).exceptions)
            else:
                errors.append(one)
    except Exception:  # its class may answer with code of its own
        errors.clear()
    return tuple(errors) or (exc,)


def contains(exc: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Whether an error is of these kinds, or a group with one of them in it."""
    return isinstance(exc, kinds) or any(isinstance(one, kinds) for one in errors_in(exc))


def consists_of(exc: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Whether an error is of these kinds, or a group of nothing else."""
    return isinstance(exc, kinds) or all(isinstance(one, kinds) for one in errors_in(exc))


# -- effects outside Kafka


class EffectError(SemelError):
    """An effect outside Kafka cannot be carried out as asked."""


class EffectConflict(EffectError):
    """Its key stands for another payload: nothing was done."""


class EffectInFlight(EffectError):
    """Somebody else is at it: nothing was done here, and a later call finds the outcome."""


class EffectUnsure(EffectError):
    """Nobody knows whether it happened, or whether once only. `outcome`: what it returned, where it has happened here."""

    def __init__(self, message: str, outcome: object = None) -> None:
        super().__init__(message)
        self.outcome = outcome


class InboxUnreachable(EffectError):
    """The database that remembers effects gives no connection."""


class InboxSchemaError(EffectError):
    """The tables of the inbox are missing, or of another version."""


class ExtraMissing(ConfigError):
    """What was used needs a package that is not installed; `extra` brings it."""

    def __init__(self, what: str, extra: str, package: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs {package}, which is not installed: pip install 'semel[{extra}]'")


# -- recovering


class RecoveryError(SemelError):
    """State cannot be restored without a decision by a person."""


class PositionConflict(RecoveryError):
    """Group offsets and recorded positions disagree (protocol rule 10)."""


class TopicChanged(RecoveryError):
    """A topic was grown, recreated or trimmed under the application (protocol rule 17)."""


class StateDirectoryError(RecoveryError):
    """The state directory belongs to another application, version or process, or cannot be written."""


class StateDirectoryUnusable(StateDirectoryError, ConfigError):
    """What state_dir names can be no state directory for this user: the setting is to be another."""


class StateNotReady(RecoveryError):
    """State was read outside an event while it is restored; ask again."""


class ShapeChanged(RecoveryError):
    """Tables, codecs or the dedup rule differ from what the stored state was made with (protocol rule 24)."""
