"""What is to be done about an effect, by what a store has under its key. Pure: steps are yielded, whoever runs them
does I/O.

An effect that a store can keep in one transaction with its claim happens once. Any other goes claim, call, outcome: who dies
between the last two leaves a claim of which nobody can say whether its effect has happened. Such a claim is *stranded*, and what
then happens is never decided silently.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

from semel.effects.effect import Effect, Outcome, Place, read_outcome
from semel.effects.effect import outcome as kept
from semel.errors import EffectConflict, EffectInFlight, EffectUnsure, HandlingError

Unsure = Literal["refuse", "again"]

# While another one has the claim, it is asked again after so long, and twice as long after that.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.01, 0.5


@dataclass(frozen=True)
class StoredClaim:
    """A row that was there before. `owner`: who claimed it. `held`: that one is still at it, as far as the store can tell."""

    payload: bytes
    owner: str
    done: bool
    outcome: bytes | None = None
    place: Place | None = None
    at_ms: int | None = None
    held: bool = False


class Verdict(Enum):
    REMEMBERED = "it has happened"
    ANEW = "the row is of an earlier event of this id, whose window is over"
    CONFLICT = "the row is of another payload"
    IN_FLIGHT = "somebody is at it"
    STRANDED = "somebody was at it, and nobody knows how far"


def judge(stored: StoredClaim, effect: Effect) -> Verdict:
    """What a row means to an effect of the same key."""
    if stored.done and _window_over(stored, effect):
        return Verdict.ANEW
    if stored.payload != effect.payload:
        return Verdict.CONFLICT
    if stored.done:
        return Verdict.REMEMBERED
    return Verdict.IN_FLIGHT if stored.held else Verdict.STRANDED


def _window_over(stored: StoredClaim, effect: Effect) -> bool:
    """Dedup has let another record of the same id pass, as it does when the window is over: it is another event."""
    if effect.window_ms is None or stored.at_ms is None or effect.at_ms is None or stored.place == effect.place:
        return False
    return effect.at_ms > stored.at_ms + effect.window_ms


# -- an effect elsewhere, step by step


class Claim(NamedTuple):
    """-> None where the claim is ours, else what was StoredClaim."""


class TakeOver(NamedTuple):
    """A stranded claim, or a row whose window is over, becomes ours, if it is still `seen`'s. -> bool"""

    seen: str


class Wait(NamedTuple):
    seconds: float


class Call(NamedTuple):
    """-> what the effect returned, or the Failed that it raised."""


class Confirm(NamedTuple):
    """Ask the far end. -> NOT_DONE, or the outcome of what happened there."""


class Keep(NamedTuple):
    """The effect has happened. -> whether the claim was still ours."""

    outcome: Outcome


class Release(NamedTuple):
    """The effect has certainly not happened: the row goes, if it is still ours."""


Step = Claim | TakeOver | Wait | Call | Confirm | Keep | Release


class Failed(NamedTuple):
    """The effect raised. `certain`: it says by its type that nothing has happened."""

    error: BaseException
    certain: bool


class NotDone:
    """What `confirm` returns where the far end knows nothing of the effect."""

    def __repr__(self) -> str:
        return "semel.NOT_DONE"


NOT_DONE = NotDone()


class Done(NamedTuple):
    """`repeated`: it had happened before, and the outcome is what was remembered."""

    outcome: Any
    repeated: bool


def carry_out(effect: Effect, *, unsure: Unsure, confirms: bool, wait_s: float) -> Generator[Step, Any, Done]:
    """The steps of an effect that no transaction holds. EffectConflict, EffectInFlight, EffectUnsure, and what the effect raises.

    `wait_s`: for how long another one who is at it is waited for.
    """
    waited, pause = 0.0, FIRST_WAIT_S
    while True:
        stored: StoredClaim | None = yield Claim()
        if stored is None:
            return (yield from _call(effect))
        match judge(stored, effect):
            case Verdict.REMEMBERED:
                return Done(read_outcome(stored.outcome), True)
            case Verdict.CONFLICT:
                raise conflict(effect, stored)
            case Verdict.ANEW:
                if (yield TakeOver(stored.owner)):
                    return (yield from _call(effect))
            case Verdict.IN_FLIGHT:
                if waited >= wait_s:
                    raise EffectInFlight(
                        f"effect {effect.key} is being carried out by somebody else, and was not done after {waited:.1f} s; "
                        "call it again later, the outcome will be remembered"
                    )
                yield Wait(pause)
                waited, pause = waited + pause, min(2 * pause, LONGEST_WAIT_S)
            case Verdict.STRANDED:
                if not confirms and unsure == "refuse":
                    raise stranded(effect)
                if (yield TakeOver(stored.owner)):
                    return (yield from _resume(effect, confirms))


def _resume(effect: Effect, confirms: bool) -> Generator[Step, Any, Done]:
    """A stranded claim is ours: the far end says what became of it, or the effect is carried out again."""
    if confirms:
        confirmed = yield Confirm()
        if isinstance(confirmed, Failed):
            raise confirmed.error
        if confirmed is not NOT_DONE:
            return (yield from _keep(effect, confirmed, repeated=True))
    return (yield from _call(effect))


def _call(effect: Effect) -> Generator[Step, Any, Done]:
    result = yield Call()
    if isinstance(result, Failed):
        if result.certain:
            yield Release()
        raise result.error
    return (yield from _keep(effect, result, repeated=False))


def _keep(effect: Effect, result: Any, *, repeated: bool) -> Generator[Step, Any, Done]:
    outcome = kept(result)
    ours: bool = yield Keep(outcome)
    if not ours:
        raise EffectUnsure(
            f"effect {effect.key} has happened, and its claim was taken over meanwhile by another call with the same key: it "
            "may have happened twice. Look at the far end; give what takes long a time limit below that of the connection to "
            "the store"
        )
    check_outcome(effect, outcome)
    return Done(outcome.value, repeated)


def check_outcome(effect: Effect, outcome: Outcome) -> None:
    if outcome.refused:
        raise HandlingError(
            f"effect {effect.key} has happened and is remembered, but {outcome.refused}; a repeat returns None. Return what "
            "is JSON: an id, a status"
        )


def conflict(effect: Effect, stored: StoredClaim) -> EffectConflict:
    at = f", of {stored.place}," if stored.place is not None else ""
    return EffectConflict(
        f"effect {effect.key}{' of ' + str(effect.place) if effect.place else ''} has another payload than the one{at} that "
        f"{'happened' if stored.done else 'was begun'} under this key: nothing is done. Give another intent another key, or "
        "the same payload again"
    )


def stranded(effect: Effect) -> EffectUnsure:
    return EffectUnsure(
        f"effect {effect.key} was begun by a process that ended before it could say whether it happened: nothing is done. Give "
        "confirm= to ask the far end, unsure='again' where it knows the effect by its idempotency key, or look, and settle "
        f"it with semel inbox settle {effect.key.digest.hex()}"
    )
