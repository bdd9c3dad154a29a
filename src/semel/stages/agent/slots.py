"""Slots: how many runs of an agent's code a worker has side by side, and what they share (protocol rule 3).

A slot is an `AgentRunner`: a run of the code, with at most one event in hand. There is one at first. Where it awaits something
within its event while there are records that need not wait for that, another is made, up to as many as the plan says; those that
have nothing to do wait in line, of which one keeps watch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from semel.plan import AgentPlan
from semel.port import TP
from semel.stages.agent.circuit_breaker import Halted
from semel.stages.agent.completion import Completion
from semel.stages.agent.failure_handler import FailureHandler
from semel.stages.agent.failure_log import FailureLog
from semel.stages.agent.rate_limiter import Limited, RateLimiter
from semel.stages.agent.work_queue import WorkQueue
from semel.stages.dedup.processor import DedupProcessor
from semel.stages.dedup.side_outputs import SideOutputs
from semel.stages.dedup.wall_clock import WallClock
from semel.stages.services import Services
from semel.stages.sink.results import Results
from semel.state.task import Cursor

if TYPE_CHECKING:
    from semel.stages.agent.runner import AgentRunner


class AgentSlots:
    """One agent's. `runners`: its slots, in the order in which they were made. `grow`: makes another, which adds itself.

    `origin`: what the lineage of a partition's outputs begins with; `released`: told that records of a cursor are done with.
    """

    def __init__(
        self,
        services: Services,
        plan: AgentPlan,
        results: Results,
        *,
        origin: Callable[[TP], bytes] | None,
        released: Callable[[Cursor], None],
        grow: Callable[[AgentSlots], None],
    ) -> None:
        self.services = services
        self.plan = plan
        self.results = results
        self.origin = origin
        self.released = released
        self._grow = grow
        self.runners: list[AgentRunner] = []
        # Events that were handled for nothing, since another had changed a row that they saw.
        self.conflicts = 0
        self.log = FailureLog()
        self.limiter = RateLimiter(plan.rate_limit, services.clock) if plan.rate_limit is not None else None
        self.queue = WorkQueue(services, plan, self.log, self.limiter)
        side_outputs, wall_clock = SideOutputs(services), WallClock()
        self.processor = DedupProcessor(services, plan, side_outputs, wall_clock)
        self.completion = Completion(services, self.queue)
        self.failures = FailureHandler(services, plan, side_outputs, wall_clock, self.log, self.completion)

    def may_take(self, runner: AgentRunner) -> bool:
        """Whether this slot may take records: one is enough while none of the others awaits something within its event."""
        return (
            len(self.runners) == 1
            or self.plan.by_key
            or all(other.context.unit is None or other.awaits for other in self.runners if other is not runner)
        )

    def offer(self, cursor: Cursor) -> None:
        """There are records at this cursor."""
        self.queue.offer(cursor)
        if self.queue.busy == len(self.runners) and all(runner.awaits for runner in self.runners):
            self.one_awaits()

    def one_awaits(self) -> None:
        """A slot has begun to await something within its event: another may go on with what nobody is at."""
        if not self.queue.others_ready:
            return
        if self.queue.busy < len(self.runners):
            self.queue.wake.set()
        elif self.queue.busy < self.plan.slots:
            self._grow(self)

    @property
    def who_waits(self) -> str:
        """Behind an event that is in hand."""
        if self.plan.slots == 1:
            return "It handles one event at a time, so its other events on this worker wait, too, of whatever partition"
        behind = "key" if self.plan.by_key else "partition"
        return f"The later events of its {behind} wait, too; others go on"

    @property
    def idle(self) -> bool:
        """There is nothing for the agent to do."""
        return all(runner.waiting for runner in self.runners) and not (self.limiter is not None and self.limiter.limits)

    @property
    def limited(self) -> Limited | None:
        """What keeps its events from being handled as fast as it could; None where it has no rate limit."""
        return None if self.limiter is None else self.limiter.now(self.plan.name)

    @property
    def returned(self) -> int:
        """Events, or batches, that counted as done because the agent's code returned."""
        return sum(runner.returned for runner in self.runners)

    @property
    def halted(self) -> Halted | None:
        """Where its events fail one like the other, and none is taken but to probe."""
        return self.failures.breaker.halted(self.plan.name, self.services.clock.monotonic())
