"""Poison pills: who is to blame for a record that is refused; epochs of one event find it (rule 2)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from semel.port import TP
from semel.stages.agent.runner import AgentRunner
from semel.stages.commit.transaction import Unwritable

log = logging.getLogger("semel.engine")

# More than the events of one refused epoch, mostly; where it was less, the next refusal begins anew, further on.
ISOLATED_EPOCHS = 2_000
# A broker that stalls does so once or twice, not three times in the middle of the same event's writes.
UNFINISHED_TRIES = 3


class PoisonPills:
    """While `isolating` is above zero an epoch holds what came of one event, or one output without an event."""

    def __init__(self) -> None:
        self.isolating = 0
        self._here: list[tuple[TP, str, int]] = []
        # Transactions in a row that were open for longer than brokers keep them.
        self._outlived = 0
        # How often the event's epoch got no answer in time although it was alone in it.
        self._unfinished: Counter[tuple[TP, str, int]] = Counter()
        # source partition and agent -> offset -> why its event goes to the dead letters instead of the agent
        self._poisoned: dict[tuple[TP, str], dict[int, str]] = {}

    def poisoned(self, tp: TP, agent: str) -> dict[int, str]:
        return self._poisoned.setdefault((tp, agent), {})

    def sealed(self, runners: Sequence[AgentRunner]) -> None:
        """An epoch was cut: note whose writes are in it."""
        self._here = []
        for runner in runners:
            if runner.alone is not None and not runner.context.holding:
                tp, offset = runner.alone
                self._here.append((tp, runner.plan.name, offset))
                runner.alone = None

    def committed(self) -> None:
        if self.isolating:
            self.isolating -= 1
        if self._poisoned:
            for tp, agent, offset in self._here:
                self._poisoned.get((tp, agent), {}).pop(offset, None)
        self._here = []
        self._unfinished.clear()
        self._outlived = 0

    def unfinished(self, why: str) -> None:
        """The sealed epoch did not get through in its time, though brokers did nothing but take it. One event alone, tried
        often enough, is to blame.
        """
        if not self.isolating:
            self.isolating = ISOLATED_EPOCHS
            return
        for here in self._here:
            self._unfinished[here] += 1
            if self._unfinished[here] >= UNFINISHED_TRIES:
                tp, agent, offset = here
                self.poisoned(tp, agent)[offset] = why
                # It was found: what comes after it need not be looked at one by one.
                self.isolating = 1
                log.warning("%s[%d]@%d: %s", *tp, offset, why)

    def outlived(self) -> None:
        """The sealed epoch's transaction timed out, as it does where an event holds the loop while it is open. Twice in a row it
        may be the same event, so that nothing would ever be committed: then no event begins while a transaction is open.
        """
        self._outlived += 1
        if self._outlived > 1:
            self.isolating = max(self.isolating, ISOLATED_EPOCHS)

    def refused(self, cause: Exception) -> bool:
        """The sealed epoch was refused for a record in it. False: even the dead letter of its one event is refused."""
        before, self.isolating = self.isolating, ISOLATED_EPOCHS
        if not before:
            return True
        ends = True
        by = "" if isinstance(cause, Unwritable) else " by the broker"
        for tp, agent, offset in self._here:
            poisoned = self.poisoned(tp, agent)
            ends = ends and offset not in poisoned
            poisoned[offset] = f"its writes were refused{by}: {cause}"
            log.warning("%s[%d]@%d is to blame for what was refused%s: %s", tp.topic, tp.partition, offset, by, cause)
        return ends
