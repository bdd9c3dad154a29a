"""Engine: one worker's heart. It owns tasks and runners, commits what they did, and starts over when that fails.

One lock, `_turn`, orders what changes what is held: committing, taking over, revoking. (A revocation that can commit nothing
any more does not wait for it: all is stale at once.) Runners never take it; they only meet the gate. The rules are those of
`docs/protocol.md`; the numbers in comments are theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import cache, partial
from itertools import islice

from semel.broker.answers import Answer, needs_a_person
from semel.broker.asking import ask
from semel.errors import SemelError, StaleIncarnation, TopicChanged
from semel.group.assignor import Assignment
from semel.group.membership import GroupMember
from semel.plan import AgentPlan, Plan
from semel.port import TP, Broker, Clock, Fetched, Membership, Randomness, RpcError, RpcLost
from semel.runtime import looptime
from semel.runtime.budget import shares
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.stages.agent import agent_loop
from semel.stages.agent.circuit_breaker import Halted, overdue
from semel.stages.agent.crash_suspects import CrashSuspects
from semel.stages.agent.rate_limiter import Limited
from semel.stages.agent.runner import AgentRunner
from semel.stages.agent.scheduler import Scheduler
from semel.stages.agent.slots import AgentSlots
from semel.stages.agent.unfinished import UnfinishedEvents
from semel.stages.agent.without_results import AgentsWithoutResults
from semel.stages.commit.committer import Committer
from semel.stages.commit.due_timers import DueTimers
from semel.stages.commit.ownership import Ownership
from semel.stages.commit.transaction import CommitFailed
from semel.stages.fetch.fetch_errors import FetchErrors
from semel.stages.fetch.fetcher import Fetcher
from semel.stages.fetch.hanging_transactions import HangingTransactions
from semel.stages.fetch.lag import Rate, lag
from semel.stages.services import Services
from semel.stages.sink.dead_letters import DeadLetters
from semel.stages.sink.destination import Destination, ProducerRecord
from semel.stages.sink.open_epoch import OpenEpoch
from semel.stages.sink.results import Results
from semel.state import lineage
from semel.state.crash_notes import CrashNotes
from semel.state.event_context import EventContext, EventStatus
from semel.state.store import Store, StoreError
from semel.state.task import Cursor, ParkedTask, RetryState, Task, TaskState
from semel.task import rights
from semel.task.activation import Activation
from semel.task.migration import migrate
from semel.task.new_writer import new_writer
from semel.task.restore import Restorer
from semel.task.topic_identity import source_remade
from semel.task.topic_watch import TopicWatch
from semel.task.topics import Topics
from semel.topic import Topic
from semel.worker.abort_recovery import Recovery, StartingOver
from semel.worker.background import Background

log = logging.getLogger("semel.engine")

# Restores running side by side: they share one loop and one disk.
RESTORES = 8
# A broker that restarts is back by then, after that a person should know. A cluster that restarts whole is back within a
# minute; a worker that met nobody ends, and its supervisor starts it again.
PATIENT_S, UNREACHABLE_S = 10.0, 60.0
HALTED_LOOK_S = 1.0


class Engine:
    """Runs a `Plan` against a `Broker`. `run` returns after `stop`, or raises why it cannot go on (a SemelError)."""

    def __init__(
        self,
        plan: Plan,
        settings: EngineSettings,
        broker: Broker,
        store: Store,
        clock: Clock,
        randomness: Randomness,
        *,
        instance: str,
        failpoints: Failpoints | None = None,
        notes: CrashNotes | None = None,
    ) -> None:
        self.plan = plan
        self.app = plan.app
        self.settings = settings
        self.instance = instance
        self.broker = broker
        self.store = store
        self.clock = clock
        self.randomness = randomness
        self.transactional_id = plan.transactional_id(instance)
        self._pass = failpoints or Failpoints()
        self.shares = shares(settings.memory_budget_bytes)
        self.topics = Topics(
            broker, clock, plan, replication_factor=settings.replication_factor, say=self._say_waiting,
            keys_bytes=self.shares.keys,
        )  # fmt: skip
        self.notes = notes or CrashNotes(plan.slots, list(plan.sources))
        self._crash_suspects = CrashSuspects(self.notes, plan)
        # Of all agents, the slots that there are.
        self._prepare_slot: list[Callable[[AgentRunner], None]] = []
        self.runners: list[AgentRunner] = []
        self.troubles = FetchErrors(clock)
        self.fetcher = Fetcher(
            broker, clock, offer=self._offer, trimmed=self._trimmed, troubles=self.troubles, budget=self.shares.source,
            idle=self._idle,
        )  # fmt: skip
        self.owned = Ownership()
        self.assignment = Assignment(())
        self.group: GroupMember | None = None
        changed = asyncio.Event()
        self.epoch = OpenEpoch(self.shares.epoch, self.shares.event, changed)
        self._void_sends_told = False
        self._turn = asyncio.Lock()
        self._retry_states: dict[tuple[TP, str], RetryState] = {}
        self._topics_anew = self._rights_checked = False
        # Set where what `restored` says may have become true.
        self._brought_up = asyncio.Event()
        self._restorer = Restorer(
            broker,
            clock,
            randomness,
            self._pass,
            store,
            plan,
            settings,
            self.topics,
            self.troubles,
            own_id=self.transactional_id,
        )
        self._activation = Activation(plan, settings, broker, clock, store, self.topics, self._restorer)  # fmt: skip
        self._taking_over: asyncio.Task[None] | None = None
        self._background = Background(self.notes.died)
        # -- what others look at
        self.waiting_for = "starting"
        names = "commits aborts unknown fences rebalances recoveries left_out timed_out trims rebuilds"
        self.stats: dict[str, float] = dict.fromkeys(names.split(), 0)
        self.stats["rebuilds"] = store.found_damaged
        self.lingering = UnfinishedEvents(
            self.runners, clock, self.stats, handler_timeout_ms=settings.handler_timeout_ms
        )
        self._rate = Rate(clock)
        self._watch = TopicWatch(
            self.owned, plan, settings, broker, clock, self.topics, assigned=lambda: self.assignment.partitions,
            source_grew=self._source_grew, outputs_remade=self._outputs_remade,
        )  # fmt: skip
        self.timers = DueTimers(
            self.owned, self.epoch, plan, clock, destination=self.topics.destinations.get,
            open_destination=self.open_destination, changed=changed,
        )  # fmt: skip
        self._committer = Committer(
            self.owned, self.runners, self.epoch, plan, settings, broker, store, clock, self._pass, stats=self.stats,
            transactional_id=self.transactional_id, confirm=self._watch.confirm, changed=changed, sinks=self.topics.sinks,
            timers=self.timers,
        )  # fmt: skip
        self._recovery = Recovery(
            self.owned, StartingOver(self.drop_everything, self.start_over, self.stop_taking_over, self._read_topics_anew),
            plan, settings, store, clock, self._committer.poison_pills, self._background, stats=self.stats,
            group=lambda: self.group, transactional_id=self.transactional_id, instance=instance,
        )  # fmt: skip
        self._services = Services(
            self.app, clock, randomness, self.epoch,
            DeadLetters(plan.dead_letter_topic, 1, 1 << 20, settings.code_version, settings.dead_letter_headers), changed,
            self._recovery.store_failed, settings.interrupts, settings.halt_after,
        )  # fmt: skip
        self.agents: list[AgentSlots] = []
        self.scheduler = Scheduler(
            self.runners, self.agents, clock, handler_timeout_ms=settings.handler_timeout_ms, open=self._open,
            uncommitted=lambda: self.uncommitted, isolating=lambda: self._committer.poison_pills.isolating > 0,
            one_by_one=self._one_by_one, behind=self._is_behind, silent=self._silent,
        )  # fmt: skip
        # Of each agent, where further slots note what they have in hand.
        self._slots_noted: dict[AgentSlots, list[memoryview]] = {}
        noted = iter(self.notes.slots)
        for agent in plan.agents:
            slots = self._agent(agent)
            self.agents.append(slots)
            self._slots_noted[slots] = list(islice(noted, agent.slots))
            self._add_slot(slots)
        self.store_failed = self._recovery.store_failed
        self.commit_seconds = self._committer.commit_seconds
        self.commit_histogram = self._committer.commit_histogram
        self.on_committed = self._committer.on_committed
        self.without_results = AgentsWithoutResults(self.agents)
        self.on_committed.append(self.without_results.look)
        if self.notes.suspects:
            self.on_committed.append(self._landed)

    def _agent(self, agent: AgentPlan) -> AgentSlots:
        name = agent.name if len(self.plan.agents) > 1 else ""

        @cache
        def origin(tp: TP) -> bytes:
            return lineage.prefix(self.app, name, tp.topic, tp.partition)

        results = Results(self.app, agent.name, self.topics.destinations.get, self.open_destination)
        return AgentSlots(
            self._services, agent, results, origin=origin if self.settings.lineage else None, released=self.fetcher.consumed,
            grow=self._grow,
        )  # fmt: skip

    def _add_slot(self, slots: AgentSlots) -> AgentRunner:
        runner = AgentRunner(slots, self.scheduler, self.notes, self._slots_noted[slots].pop(0))
        slots.runners.append(runner)
        self.runners.append(runner)
        for prepare in self._prepare_slot:
            prepare(runner)
        return runner

    def each_slot(self, prepare: Callable[[AgentRunner], None]) -> None:
        """Of every agent, those that are made later included."""
        self._prepare_slot.append(prepare)
        for runner in self.runners:
            prepare(runner)

    def _grow(self, slots: AgentSlots) -> None:
        if not slots.runners[0].closed:
            self._run(self._add_slot(slots))

    def _run(self, runner: AgentRunner) -> None:
        self._background.spawn(agent_loop.run(runner), f"agent {runner.plan.name}")

    # ================================================================== running

    async def run(self) -> None:
        """Until `stop`. Raises a SemelError where only a person can help; nothing is lost then."""
        self._background.begin()
        try:
            await self._connect()
            self._background.spawn(self.fetcher.run(), "fetcher")
            self._background.spawn(self._commit_loop(), "commits")
            self._background.spawn(self.lingering.run(), "unfinished events")
            if self.settings.halted_timeout_ms:
                self._background.spawn(self._end_when_halted(), "halted agents")
            self._background.spawn(self._watch.run(), "topics")
            self._background.spawn(
                HangingTransactions(self.broker, self.clock, self.fetcher.fetches).run(), "held back"
            )
            for runner in list(self.runners):
                self._run(runner)
            if self.plan.sources:
                self.group = self._member()
                self._background.spawn(self.group.run(), "group")
            else:
                self._background.spawn(self._without_sources(), "writer")
            await self._background.until_stopped()
        finally:
            await self._shut_down()

    def _member(self) -> GroupMember:
        s = self.settings
        return GroupMember(
            self.broker,
            self.clock,
            self._pass,
            self,
            group=self.app,
            instance=self.instance,
            instance_id=f"{self.app}-{self.instance}",
            topics=tuple(self.plan.sources),
            url=s.web_url,
            program=self.plan.program,
            session_timeout_ms=s.session_timeout_ms,
            rebalance_timeout_ms=s.rebalance_timeout_ms,
        )

    def fail(self, exc: BaseException) -> None:
        """Stop with this error; what is not committed is dropped."""
        self._background.fail(exc)

    def stop(self) -> None:
        """Ask `run` to end: drain within drain_timeout_ms, commit, leave the group's work in order."""
        self.notes.told()
        self._background.stop()

    async def _connect(self) -> None:
        """Until a broker answers, or `stop`. RpcLost where none did for a minute: whoever supervises this worker is to know."""
        began, warned = looptime.now(), False

        async def meet() -> None:
            if not self._background.stopping:
                await self.broker.start()

        def waiting(exc: RpcError | RpcLost) -> None:
            nonlocal warned
            self._say_waiting(f"the broker does not answer: {exc}; is the setting broker right, and does it run?")
            if not warned and looptime.now() - began >= PATIENT_S:
                warned = True
                log.warning("%s (still trying)", self.waiting_for)

        try:
            await ask(self.clock, meet, until=began + UNREACHABLE_S, waiting=waiting)
        except (RpcError, RpcLost) as exc:
            if needs_a_person(exc):
                raise
            why = (f"no broker was met for {looptime.now() - began:.0f} s, and this worker gives up ({exc}). Is the setting "
                   "broker right, does it run, and can this machine reach the address that it advertises?")  # fmt: skip
            raise RpcLost(exc.api, why, sent=False, whole=True) from exc

    async def _shut_down(self) -> None:
        """Finish what runs, commit it, and go; a failed engine commits nothing."""
        await self.stop_taking_over()
        if self._background.failure is None:
            await self._last_commit()
        for runner in self.runners:
            runner.close()
        if self.group is not None:
            self.group.stop()
        await self._background.cancel()
        # The group may have assigned something while the last epoch was committed.
        await self.stop_taking_over()
        await self._committer.close()
        if self.group is not None and self._background.failure is None and self.settings.leave_on_stop:
            await self.group.leave()
        if self.owned.writer is not None:
            with contextlib.suppress(RpcError, RpcLost, TimeoutError):
                async with asyncio.timeout(self.settings.rpc_timeout_ms / 1000):
                    await self.owned.writer.abort()
        await self.broker.close()

    async def _last_commit(self) -> None:
        try:
            async with asyncio.timeout(self.settings.drain_timeout_ms / 1000):
                async with self._turn:
                    self.owned.open_for_work = False
                    await self._committer.commit(last=True)
        except (TimeoutError, CommitFailed, StoreError, SemelError) as exc:
            log.warning("the last epoch is not committed, its events are handled again at the next start: %s", str(exc))

    def _say_waiting(self, what: str) -> None:
        if what != self.waiting_for:
            self.waiting_for = what
            if what:
                log.info("%s", what)

    # ================================================================== what others look at

    @property
    def tasks(self) -> dict[int, Task]:
        return self.owned.tasks

    @property
    def membership(self) -> Membership | None:
        return self.owned.membership

    @property
    def restored(self) -> bool:
        """Every task of the current assignment runs."""
        return self.owned.open_for_work and len(self.owned.running) == len(self.tasks)

    def clock_was_set(self) -> None:
        """Timers may be due that were not."""
        self._committer.changed.set()

    async def until_restored(self) -> None:
        while not self.restored:
            self._brought_up.clear()
            await self._brought_up.wait()

    @property
    def paused_by(self) -> str:
        """Why no work is taken; empty where it is."""
        return self._recovery.paused_by

    @property
    def uncommitted(self) -> bool:
        """Something is done, or sent, that is not committed yet."""
        return self._committer.committing or self._committer.has_work()

    def gone(self) -> list[str]:
        """Topics of the app that are not there, in words."""
        return self._watch.missing()

    def lag(self) -> dict[TP, int | None]:
        """Records between the committed position and the log's end; None where that is not known now."""
        return lag(self.tasks.values(), self.fetcher.fetches, self.clock.monotonic())

    def budget_bytes(self) -> dict[str, int]:
        """The memory budget, and the shares of it that `held_bytes` are of."""
        share = self.shares
        return {"all": share.budget, "source": share.source, "epoch": self.epoch.limit_bytes, "rows": share.rows,
                "keys": share.keys, "carry": share.outbox}  # fmt: skip

    def held_bytes(self) -> dict[str, int]:
        """What of the memory budget is in use, by share."""
        return {
            "source": self.fetcher.held_bytes,
            "epoch": self.epoch.bytes,
            "rows": sum(rows.hot_bytes for task in self.tasks.values() for rows in task.tables.values()),
            "keys": self.topics.keys_bytes,
            "carry": self._committer.outbox.bytes,
        }

    def rate(self) -> float:
        """Events a second since the last time this was asked for, at least a second ago; else as then."""
        return self._rate.of(self.tasks.values())

    # ================================================================== what runners ask

    def _open(self) -> bool:
        return self.owned.open_for_work and not self.paused_by and not self._committer.throttled_s() > 0

    def _one_by_one(self) -> bool:
        return bool(self.notes.suspects) and self._crash_suspects.counting(self.tasks)

    def _silent(self, held_s: float) -> bool:
        return self.group is not None and self.group.silent and held_s >= self.group.patience_s

    def halted(self) -> list[Halted]:
        """Agents whose events fail one like the other."""
        return [halted for agent in self.agents if (halted := agent.halted) is not None]

    async def _end_when_halted(self) -> None:
        """PipelineHalted, so that whoever supervises this worker is to know."""
        while (error := overdue(self.halted(), self.settings.halted_timeout_ms)) is None:
            await self.clock.sleep(HALTED_LOOK_S)
        raise error

    def limited(self) -> list[Limited]:
        """Agents with a rate limit."""
        return [limited for agent in self.agents if (limited := agent.limited) is not None]

    def parked(self) -> dict[int, ParkedTask]:
        """By task with parked events or held keys, how many these are, and what keeps its partition from taking more."""
        return {
            p: ParkedTask(task.parked_events, task.held_up, task.held_keys)
            for p, task in self.tasks.items()
            if task.parked_events or task.held_keys
        }

    def retry_state(self, tp: TP, agent: str) -> RetryState:
        """Those that a source partition's events have had, whoever owned it since."""
        state = self._retry_states.get((tp, agent))
        if state is None:
            state = self._retry_states[(tp, agent)] = RetryState(self._crash_suspects.of(tp, agent))
        return state

    def _landed(self) -> None:
        for suspect in self._crash_suspects.landed(self.tasks):
            state = self._retry_states.get((TP(suspect.topic, suspect.partition), suspect.agent))
            if state is not None:
                state.suspects.remove(suspect)

    def _is_behind(self) -> bool:
        return (
            self._committer.behind
            or (self.group is not None and self.group.behind)
            or (self._taking_over is not None and not self._taking_over.done())
        )

    async def open_destination(self, topic: Topic) -> Destination:
        return await self.topics.open_destination(topic, max(self.assignment.partitions.values(), default=1))

    def _source_grew(self) -> None:
        """There are new partitions: they are assigned as the others are."""
        if self.group is not None:
            self.group.rejoin_anew()

    async def _outputs_remade(self) -> None:
        """A topic that results or dead letters go to is another one: what was meant for the old one is done again."""
        async with self._turn:
            self._topics_anew = True
            self.drop_everything()
        self.start_over()

    def _read_topics_anew(self) -> None:
        """With the next takeover: what they take may be another by now."""
        self._topics_anew = True

    def _offer(self, cursor: Cursor) -> None:
        for agent in self.agents:
            if agent.plan is cursor.agent:
                agent.offer(cursor)

    def _idle(self, cursor: Cursor) -> bool:
        return all(agent.idle for agent in self.agents if agent.plan is cursor.agent)

    def _trimmed(self, tp: TP, asked: int, answer: Fetched) -> None:
        self._background.spawn(self._see_what_is_gone(tp, asked), "what is gone")

    async def _see_what_is_gone(self, tp: TP, asked: int) -> None:
        """Records that we are to read were deleted. Is the group past them, another worker has our tasks: rejoin."""
        membership, task = self.membership, self.tasks.get(tp.partition)
        held, _ = task.topics.get(tp.topic, ("", 0)) if task is not None else ("", 0)
        try:
            now = (await self.broker.topics([tp.topic])).get(tp.topic)
            done = (await self.broker.stable_offsets(self.app, [tp]))[tp]
        except (RpcError, RpcLost) as exc:
            log.info("what the group stands at in %s[%d]: %s", tp.topic, tp.partition, exc)
            return
        if membership is not self.membership:
            return
        if now is None:
            # Deleted, not trimmed: that is the watch's to say.
            return
        if held and now.id != held:
            self.fail(source_remade(self.app, tp.topic))
            return
        if done > asked and self.group is not None:
            log.warning(
                "%s[%d]@%d is gone and the group stands at %d: this worker was replaced while it slept",
                *tp,
                asked,
                done,
            )
            self.group.request_rejoin()
            return
        self.fail(
            TopicChanged(
                f"{tp.topic}[{tp.partition}] no longer holds offset {asked}, where {self.app!r} stands: records were deleted, by "
                "retention or by hand, before they were processed. Run `semel reset --to earliest` to go on with what is "
                "there, and raise the topic's retention"
            )
        )

    # ================================================================== epochs

    def outbox(self, out: ProducerRecord) -> asyncio.Future[None]:
        """Put an output without an event into the next epoch that commits; the future resolves then. CarryOverFull."""
        done = self._committer.outbox.add(out, self.clock.monotonic())
        self._committer.changed.set()
        return done

    def follow(self, context: EventContext, number: int, out: ProducerRecord) -> asyncio.Future[None] | None:
        """An output of a task that has outlived the event it was started in. It counts if that event does: in its epoch
        where that is open (None is answered), else in the next one after it. StaleIncarnation where the event is undone,
        CarryOverFull where too much waits for a commit."""
        match context.history.status(number, alive=context.alive):
            case EventStatus.VOID:
                if not self._void_sends_told:
                    self._void_sends_told = True
                    log.warning("a task that an event had started sends to %r after that event was undone: nothing is sent, and "
                                "the task gets StaleIncarnation. One that is to outlive its event belongs into @app.task, or "
                                "is started before the loop; this is said once", out.tp.topic)  # fmt: skip
                raise StaleIncarnation(
                    "the event this was started in is undone: it failed, or its partition moved before its commit. Where it is "
                    "handled again, this is started again"
                )
            case EventStatus.OPEN:
                self.epoch.join(out)
                return None
            case EventStatus.SEALED:
                assert context.history.after is not None
                return self._committer.outbox.follow(context.history.after, out, self.clock.monotonic())
            case EventStatus.COMMITTED:
                return self.outbox(out)

    async def _commit_loop(self) -> None:
        while True:
            await self._committer.due()
            failed: CommitFailed | None = None
            sent = False
            async with self._turn:
                membership = self.membership
                if self.owned.open_for_work:
                    try:
                        sent = await self._committer.commit()
                    except CommitFailed as exc:
                        failed = exc
                        log.warning(
                            "epoch %d is not committed: %s; what it did is undone and done again",
                            self._committer.number,
                            exc,
                        )
                        self.stats["unknown" if exc.answer is Answer.UNKNOWN else "aborts"] += 1
                        self.drop_everything()
                    except StoreError as exc:
                        self.store_failed(exc)
            if failed is not None:
                await self._recovery.after(failed, membership)
            if not sent:
                # Work waits for a writer or an assignment: never ask again without letting others run.
                await self.clock.sleep(0.01)

    # ================================================================== starting over

    def drop_everything(self) -> None:
        """The incarnation is over: no work of it may count any more (rule 5)."""
        self.owned.open_for_work = False
        self.fetcher.clear()
        # Also those of logs: a restore is over, or is begun anew.
        self.troubles.clear()
        self.scheduler.start_over()
        for runner in self.runners:
            runner.abandon()
        self._committer.abandon()
        for task in self.tasks.values():
            task.state = TaskState.RESTORING
            task.open_anew()

    def start_over(self) -> None:
        """Take over what is ours anew, if there is anything."""
        if self.membership is not None or not self.plan.sources:
            self._start_take_over()

    # ================================================================== what the group says (membership.Owner)

    async def source_partitions(self) -> dict[str, int]:
        partitions = await self.topics.ready()
        await self._check_rights()
        return partitions

    async def _check_rights(self) -> None:
        """Once, before anything is begun: what is taken away later is waited for."""
        if not self._rights_checked:
            await rights.check(
                self.broker, self.clock, self.plan, transactional_id=self.transactional_id,
                waiting=lambda exc: self._say_waiting(f"the broker does not answer: {exc}"),
            )  # fmt: skip
            self._say_waiting("")
            self._rights_checked = True

    async def revoke(self, *, lost: bool) -> None:
        """Commit the epoch within the deadline or drop it (rule 14). Nothing crosses a generation."""
        await self._pass("revoke.begin")
        await self.stop_taking_over()
        if not lost and self.owned.open_for_work:
            try:
                async with looptime.timeout(self.settings.revoke_timeout_ms / 1000), self._turn:
                    self.owned.open_for_work = False
                    await self._committer.commit(last=True)
            except (TimeoutError, CommitFailed) as exc:
                log.warning("the epoch could not be committed before the partitions had to go: %s", exc)
                self.stats["aborts"] += 1
                if self.owned.writer is not None:
                    self.owned.writer.dead = True
            except StoreError as exc:
                log.error("%s; the partitions go to others, the store is brought up to date later", str(exc))
        self.owned.membership = None
        self.drop_everything()
        if self.owned.writer is not None and self.owned.writer.transaction_open_since is not None:
            self.owned.writer.dead = True
        self.owned.tasks = {}
        self._share(0.0)
        self.assignment = Assignment((), owners=self.assignment.owners, partitions=self.assignment.partitions)
        await self._pass("revoke.end")

    async def assign(self, membership: Membership, assignment: Assignment) -> None:
        await self._pass("assign.begin")
        self.owned.membership = membership
        self.assignment = assignment
        self._share(len(assignment.tasks) / max(assignment.partitions.values(), default=1))
        self.stats["rebalances"] += 1
        self._start_take_over()

    def _share(self, of_all: float) -> None:
        """Of what a pipeline may handle in a time, this worker may take what it has of the partitions."""
        for agent in self.agents:
            if agent.limiter is not None:
                agent.limiter.begin(of_all)

    # ================================================================== taking over

    def _start_take_over(self) -> None:
        before = self._taking_over
        if before is not None:
            self._background.end(before)
        self._taking_over = self._background.spawn(self._take_over(before), "take over")

    async def stop_taking_over(self) -> None:
        """When this returns nothing restores any more."""
        taking_over, self._taking_over = self._taking_over, None
        if taking_over is not None:
            self._background.end(taking_over)
            await asyncio.wait({taking_over})

    async def _take_over(self, before: asyncio.Task[None] | None) -> None:
        """A writer, then every task restored, each running as soon as it is (rules 11, 14, 15)."""
        if before is not None:
            await asyncio.wait({before})
        membership = self.membership
        async with self._turn:
            if membership is not self.membership or self._recovery.mending:
                return
            self.drop_everything()
            if self.owned.writer is None or self.owned.writer.dead:
                self.owned.writer = await new_writer(
                    self.broker, self.clock, self._pass, self.topics, self.settings, self.transactional_id
                )
            if self._topics_anew:
                await self.topics.ready()
                self._topics_anew = False
            asked_at = self.clock.monotonic()
            topics = await self._activation.metadata(self.assignment.partitions)
            letters = self.plan.dead_letter_topic
            self._services.dead_letters = self._services.dead_letters._replace(
                partitions=self.topics.known[letters].partitions, max_bytes=self.topics.max_bytes(letters)
            )
            self._watch.begin(asked_at)
            self.topics.begin()
            await self._committer.settle_doubts(self._restorer.committed)
            mine = self.assignment.tasks
            try:
                self.owned.tasks = {
                    p: self._activation.task(p, len(mine), self._committer.poison_pills.poisoned, self.retry_state)
                    for p in mine
                }
            except StoreError as exc:
                # A new store notes first which table is which; a disk may be full by then.
                self.store_failed(exc)
                return
            for agent in self.agents:
                agent.results.sink = (
                    self.topics.destinations.get(agent.plan.sink.name) if agent.plan.sink is not None else None
                )
            self.owned.open_for_work = True
            self._brought_up.set()
        slots = asyncio.Semaphore(RESTORES)

        async def bring_up(task: Task) -> None:
            async with slots:
                await self._activation.restore(task, topics)
                if not task.unclaimed:
                    await begin(task)
                    return
                task.touched = True
                await self._committed(task)
            # Other tasks need not wait for what another app does.
            await self._restorer.confirm(task)
            async with slots:
                # From now on the position says that it is ours.
                task.touched = True
                await self._committed(task)
                await begin(task)

        async def begin(task: Task) -> None:
            await migrate(task, self.plan, partial(self._committed, task))
            self.topics.recorded(task.partition, task.committed.sinks)
            # What is to be remembered is, also where no record comes: where it began, and where outputs go.
            noted = task.committed.sinks
            task.touched = task.touched or any(
                noted.get(name) != at for name, at in self.topics.sinks(task.partition).items()
            )
            if task.parked is not None and not task.parked.loaded:
                task.parked.load(self.clock.monotonic(), int(self.clock.time() * 1000))
            for agent in self.agents:
                agent.failures.begin(task)
            task.state = TaskState.RUNNING
            self._brought_up.set()
            self._feed(task)
            for cursor in task.cursors.values():
                self._offer(cursor)
            self._committer.changed.set()
            log.info("task %d runs from %s", task.partition, {t: a.next for t, a in task.committed.topics.items()})

        restores = [asyncio.create_task(bring_up(t)) for t in self.tasks.values()]
        try:
            await asyncio.gather(*restores)
        except StoreError as exc:
            self.store_failed(exc)
        except RpcError as exc:
            if needs_a_person(exc):
                raise
            # What was told before is older than what is recorded.
            log.info("taking over is begun anew: %s", exc)
            await self.clock.sleep(0.2)
            self._start_take_over()
        finally:
            for restore in restores:
                restore.cancel()
            await asyncio.gather(*restores, return_exceptions=True)
        self._committer.changed.set()

    async def _committed(self, task: Task) -> None:
        """Until what is open of a task that does not run yet is committed. Whoever drops it ends who waits for it."""
        before = task.committed
        self._committer.changed.set()
        while task.committed is before:
            await self.clock.sleep(0.01)

    def _feed(self, task: Task) -> None:
        for topic in task.topics:
            tp = TP(topic, task.partition)
            self.fetcher.add(tp, task.topics[tp.topic][0], [c for c in task.cursors.values() if c.tp == tp])

    async def _without_sources(self) -> None:
        """An app without source topics commits under its id alone (rule 9)."""
        await self.topics.ready()
        await self._check_rights()
        self._start_take_over()
