"""EffectTrials: which effects of an agent may happen twice, and which may be missing, found by trying.

A run without trouble shows how often each effect happens. Then the same events go through a pipeline of their own for each
thing that can go wrong around each effect, and around each step of the commit; what happened is counted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import wraps
from typing import Any, NamedTuple
from unittest.mock import patch

from semel.errors import SemelError
from semel.pipeline import Pipeline
from semel.runtime.failpoints import NAMES
from semel.testing.crash import Crash
from semel.testing.effect_report import EffectReport, Trial
from semel.testing.errors import NotSettled, PipelineTesterError
from semel.testing.tester import PipelineTester

# Of the calls of an effect, and of the passes of a failpoint, so many are tried: a scenario of thousands of events ends.
_MOST = 20

_DIES_BEFORE, _DIES_AFTER, _FAILS, _ANSWER_LOST = (
    "the process dies before it", "the process dies after it", "it fails, and has not happened", "it happens, and times out",
)  # fmt: skip
_TROUBLES = (_DIES_BEFORE, _DIES_AFTER, _FAILS, _ANSWER_LOST)


class _Strike(NamedTuple):
    effect: str
    nth: int
    trouble: str

    def __str__(self) -> str:
        nth = f" (call {self.nth})" if self.nth > 1 else ""
        return f"{self.effect}{nth}: {self.trouble}"


class _Dying:
    """A scenario in which a process dies at a step of the commit."""

    def __init__(self, scenario: Callable[[PipelineTester], object], point: str, nth: int) -> None:
        self._scenario, self._point, self._nth = scenario, point, nth
        self._crash: Crash | None = None

    def __call__(self, tester: PipelineTester) -> None:
        self._crash = tester.crash(at=self._point, nth=self._nth)
        self._scenario(tester)

    @property
    def happened(self) -> bool:
        return self._crash is not None and self._crash.happened

    def __str__(self) -> str:
        return f"the process dies at {self._point}" + (f" (pass {self._nth})" if self._nth > 1 else "")


class EffectTrials:
    """Tries what can go wrong around the effects of a pipeline's agent.

        trials = EffectTrials(pipeline, lambda tester: tester.send(Payment("p1", "anna", 10), key="anna"))
        trials.effect(bank, "charge", same=lambda payment, idempotency_key: idempotency_key)
        trials.effect(mail, "send")
        report = trials.run()
        assert report.maybe_twice == {"send"}, report

    `scenario`: sends the events, and lets time pass where that belongs to it. `before_each`: makes all that effects leave
    behind as it was at the start, before each run; a far end that is a list, or a table of an inbox, would remember the run
    before. `options`: those of the `PipelineTester`.

    Not tried: two things that go wrong in one run; what an agent keeps in variables of its own is not lost with its process.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        scenario: Callable[[PipelineTester], object],
        *,
        before_each: Callable[[], object] | None = None,
        **options: Any,
    ) -> None:
        self._pipeline = pipeline
        self._scenario = scenario
        self._before_each = before_each
        self._options = options
        self._effects: dict[str, _Effect] = {}

    def effect(
        self,
        owner: Any,
        name: str,
        *,
        named: str = "",
        same: Callable[..., Hashable] | None = None,
        count: Callable[[], int] | None = None,
        fails: BaseException | None = None,
        times_out: BaseException | None = None,
    ) -> None:
        """An effect is a call of `owner`'s attribute `name`: of an object, a class or a module, where the agent looks it up.

        What stands there is called, and is to be a double or a server of the test's own. It has happened when the call
        returns. `named`: in the report; `name` unless given.

        `same`: of the call's arguments, what the far end takes for one and the same request, as an idempotency key: calls
        that have it in common count once. `count`: asks the far end how many there are instead. `fails`: what is raised
        where it fails and has not happened; ConnectionError unless given. `times_out`: what is raised where it has happened
        and its answer is lost; TimeoutError unless given.

        PipelineTesterError where there is nothing to call, or the name is taken.
        """
        known = named or name
        if not callable(getattr(owner, name, None)):
            raise PipelineTesterError(
                f"{owner!r:.200} has no {name!r} to call; name what the agent calls, where it looks it up"
            )
        if known in self._effects:
            raise PipelineTesterError(
                f"there is an effect {known!r} already; give this one a name of its own, as named='refund'"
            )
        self._effects[known] = _Effect(
            known, owner, name, same, count,
            fails or ConnectionError(f"{known} is not reached"), times_out or TimeoutError(f"{known} gave no answer in time"),
        )  # fmt: skip

    def run(self) -> EffectReport:
        """Some tens of runs, of some milliseconds each and what the effects take. PipelineTesterError where an effect does
        not happen in the run without trouble, or events do not get done there."""
        if not self._effects:
            raise PipelineTesterError("no effect is named; say trials.effect(bank, 'charge') first")
        with ExitStack() as patched:
            for effect in self._effects.values():
                patched.enter_context(effect.patched())
            untroubled = self._trial("nothing", self._scenario)
            calls = {name: effect.calls for name, effect in self._effects.items()}
            self._check(untroubled, calls)
            trials = [*self._around_effects(calls), *self._around_commits(), self._sent_twice()]
        return EffectReport(self._pipeline.name, untroubled.counts, trials)

    def _check(self, untroubled: Trial, calls: dict[str, int]) -> None:
        if untroubled.stuck:
            raise PipelineTesterError(f"without any trouble the events are not done: {untroubled.stuck}")
        for name, happened in untroubled.counts.items():
            if not calls[name] or happened <= 0:
                letters = f". There are dead letters: {untroubled.letters[-1]}" if untroubled.letters else ""
                raise PipelineTesterError(
                    f"{name!r} does not happen where nothing goes wrong: name it where the agent looks it up (after `from "
                    "bank import charge` that is the agent's module), and let the scenario send an event that leads to "
                    f"it{letters}"
                )

    def _around_effects(self, calls: dict[str, int]) -> Iterator[Trial]:
        for name, effect in self._effects.items():
            for nth in range(1, min(calls[name], _MOST) + 1):
                for trouble in _TROUBLES:
                    strike = _Strike(name, nth, trouble)
                    effect.strike = strike
                    yield self._trial(str(strike), self._scenario)
                    effect.strike = None

    def _around_commits(self) -> Iterator[Trial]:
        for point in NAMES:
            for nth in range(1, _MOST + 1):
                dying = _Dying(self._scenario, point, nth)
                trial = self._trial(str(dying), dying)
                if not dying.happened:
                    break
                yield trial

    def _sent_twice(self) -> Trial:
        def scenario(tester: PipelineTester) -> None:
            self._scenario(tester)
            tester.redeliver()

        return self._trial("the events are sent twice", scenario)

    def _trial(self, trouble: str, scenario: Callable[[PipelineTester], object]) -> Trial:
        if self._before_each is not None:
            self._before_each()
        tester = PipelineTester(self._pipeline, **self._options)
        stuck = ""
        for effect in self._effects.values():
            effect.begin(tester)
        try:
            try:
                scenario(tester)
                tester.settle()
            except SemelError as exc:
                if isinstance(exc, PipelineTesterError) and not isinstance(exc, NotSettled):
                    raise
                stuck = str(exc).partition("\n")[0]
            letters = tuple(f"{letter.reason}: {letter.error:.200}" for letter in tester.dead_letters())
        finally:
            tester.close(failed=True)
        for effect in self._effects.values():
            if effect.mistake is not None:
                raise effect.mistake
        return Trial(trouble, {name: effect.happened() for name, effect in self._effects.items()}, letters, stuck)


class _Effect:
    """Stands where the agent calls, counts, and goes wrong when it is told to."""

    def __init__(
        self, known: str, owner: Any, name: str, same: Callable[..., Hashable] | None, count: Callable[[], int] | None,
        fails: BaseException, times_out: BaseException,
    ) -> None:  # fmt: skip
        self._known, self._owner, self._name = known, owner, name
        self._same, self._count = same, count
        self._fails, self._times_out = fails, times_out
        self.strike: _Strike | None = None
        # What `same` raised: a mistake of the test, which the agent must not take for a failure of the effect.
        self.mistake: Exception | None = None
        self.calls = 0
        self._done: list[Hashable] = []
        self._before = 0
        self._tester: PipelineTester | None = None

    def begin(self, tester: PipelineTester) -> None:
        """Of a run."""
        self._tester, self.calls = tester, 0
        self._done.clear()
        self._before = self._count() if self._count is not None else 0

    def happened(self) -> int:
        if self._count is not None:
            return self._count() - self._before
        return len(self._done) if self._same is None else len(set(self._done))

    def patched(self) -> AbstractContextManager[object]:
        """The double stands where the agent calls; what was there before stands there afterwards."""
        there: Any = inspect.getattr_static(self._owner, self._name)
        double: Any = self._double(getattr(self._owner, self._name))
        if isinstance(self._owner, type):
            # Called on an object, a function gets it, and what is bound to the class already must not.
            unbound = isinstance(there, staticmethod | classmethod)
            double = staticmethod(double) if unbound else self._double(there)
        return patch.object(self._owner, self._name, double)

    def _double(self, original: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(original):

            @wraps(original)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                trouble = self._begins()
                result = await original(*args, **kwargs)
                self._ends(trouble, args, kwargs)
                return result

            return awaited

        @wraps(original)
        def called(*args: Any, **kwargs: Any) -> Any:
            trouble = self._begins()
            result = original(*args, **kwargs)
            self._ends(trouble, args, kwargs)
            return result

        return called

    def _begins(self) -> str:
        """What goes wrong with this call."""
        assert self._tester is not None
        if self._tester.caller_is_dead():
            self._tester.die()
        self.calls += 1
        strike = self.strike
        trouble = strike.trouble if strike is not None and strike.nth == self.calls else ""
        if trouble == _DIES_BEFORE:
            self._tester.die()
        if trouble == _FAILS:
            raise self._fails
        return trouble

    def _ends(self, trouble: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._tester is not None
        try:
            self._done.append(None if self._same is None else self._same(*args, **kwargs))
        except Exception as exc:
            self.mistake = self.mistake or exc
        if trouble == _DIES_AFTER:
            self._tester.die()
        if trouble == _ANSWER_LOST:
            raise self._times_out
