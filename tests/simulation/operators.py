"""Operators of dead letters: `semel dlq replay` beside workers, killed, fenced and misled; and the law that they keep."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from semel.dead_letters import audit, decisions
from semel.dead_letters.decisions import Selection
from semel.dead_letters.letter import Letter
from semel.dead_letters.offset_set import read
from semel.dead_letters.operator import Operator, Why
from semel.errors import SemelError
from semel.memory.broker import MemoryBroker
from semel.memory.faults import Call, Fault, delay
from semel.port import RpcError, RpcLost
from semel.runtime.settings import EngineSettings
from semel.stages.sink.dead_letters import split_headers
from semel.testing.clock import process
from tests.simulation.history import logs
from tests.simulation.laws import SOURCE, Violation
from tests.simulation.world import seeded
from tests.unit.harness import APP

if TYPE_CHECKING:
    from tests.simulation.storm import Storm

ATTEMPTS = 4
# No request is under way for longer.
PATIENCE_S = 8.0


class NamedOperator(Operator):
    """Its entries have ids by its name and their number: nothing of a run is chance that its seed does not know."""

    def __init__(self, name: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._name = name
        self._entries = 0

    def entry(self, *args: Any, **more: Any) -> audit.Entry:
        self._entries += 1
        return replace(super().entry(*args, **more), id=f"{self._name}/{self._entries}")


class Operators:
    def __init__(self, storm: Storm, seed: int) -> None:
        self._storm = storm
        self._seed = seed
        self.broken: list[Violation] = []
        self._running: dict[str, asyncio.Task[Any]] = {}
        # Of a client: how many requests it has made, at which one it dies, and whether that one arrives.
        self._calls: Counter[str] = Counter()
        self._doom: dict[str, tuple[int, bool]] = {}
        self._share: dict[str, float] = {}

    def network(self, call: Call) -> Fault:
        client = call.client
        self._calls[client] += 1
        rng = seeded(self._seed, client, self._calls[client])
        nth, arrives = self._doom.get(client, (0, False))
        if self._calls[client] == nth and self._storm.may(f"{client}/dies", f"operator killed: at its {call.api}"):
            self._storm.world.loop.call_soon(
                lambda: self._kill(client, arrives=arrives), context=self._storm.world.cluster.context
            )
        elif rng.random() < self._share.get(client, 0.0):
            fault, words = self._storm.passing_fault(call, rng)
            if fault is not None and self._storm.may(
                f"{client}/{self._calls[client]}", f"operator: {words} {call.api}"
            ):
                return fault
        return delay(rng.random() * 0.01, rng.random() * 0.01)

    def _kill(self, client: str, *, arrives: bool) -> None:
        self._storm.world.cluster.faults.cut(client, arrives=arrives)
        if client in self._running:
            self._running[client].cancel()

    async def replay_all(self, nth: int) -> None:
        """Every open letter comes back, whatever ends in between: repeated until one operator came to its end."""
        for attempt in range(ATTEMPTS):
            rng = seeded(self._seed, "operator", nth, attempt)
            last = attempt == ATTEMPTS - 1
            names = [f"dlq#{nth}.{attempt}.{n}" for n in range(1 if last or rng.random() < 0.7 else 2)]
            for client in names:
                if not last:
                    self._doom[client] = (
                        rng.choice([0, rng.randrange(1, 25), rng.randrange(15, 45)]),
                        rng.random() < 0.5,
                    )
                    self._share[client] = rng.choice([0.0, 0.05, 0.1])
            ended = await asyncio.gather(*(self._run(client, rng.random() * 0.3) for client in names))
            if None in ended:
                return
            self._storm.figures["operators broken off"] += len(ended)
            if last:
                self.broken.append(Violation("an_operator_comes_to_its_end", str(ended[0]), []))
            pause_s = rng.choice([0.0, 0.5, 8.0])
            # What one that was killed has still under way fences who comes at once; the last one is to be undisturbed.
            await self._storm.world.clock.sleep(PATIENCE_S if attempt == ATTEMPTS - 2 else pause_s)

    async def drop_all(self, nth: int) -> None:
        """Every open letter is dropped, and the keys go on that they hold."""
        ended = await self._run(f"dlq#drop{nth}", 0.0, drop=True)
        if ended is not None:
            # As in `replay_all`: one that was killed before may fence this one yet.
            ended = await self._run(f"dlq#drop{nth}.again", PATIENCE_S, drop=True)
        if ended is not None:
            self.broken.append(Violation("an_operator_comes_to_its_end", str(ended), []))

    async def _run(self, client: str, after_s: float, *, drop: bool = False) -> BaseException | None:
        world = self._storm.world
        await world.clock.sleep(after_s)
        broker = MemoryBroker(world.cluster, client)
        context = copy_context()
        context.run(process.set, client)
        task = asyncio.get_running_loop().create_task(self._one(broker, drop=drop), context=context)
        self._running[client] = task
        try:
            self._storm.figures["letters dropped" if drop else "letters replayed"] += await task
        except (RpcError, RpcLost, SemelError, asyncio.CancelledError) as exc:
            return exc
        finally:
            del self._running[client]
            await broker.close()
        return None

    async def _one(self, broker: MemoryBroker, *, drop: bool) -> int:
        world = self._storm.world
        await broker.start()
        operator = NamedOperator(
            broker.name,
            broker,
            world.clock,
            world.plan(),
            EngineSettings(session_timeout_ms=10_000, transaction_timeout_ms=6_000),
        )
        await operator.open()
        if drop:
            return (await operator.mark_all("drop", Selection(), Why("simulation"))).letters
        return (await operator.write_all("replay", Selection(), Why("simulation"), _unless_deadly)).letters

    def judged(self) -> list[Violation]:
        """Each letter that the audit names stands in the source once more, and no other does; none is named twice. Of those that
        are dropped only such as hold their key do."""
        found = logs(self._storm.world.recorder.events).committed
        holding = {
            f"{tp.topic}[{tp.partition}]@{s.record.offset}"
            for tp, standing in found.items() if tp.topic == f"{APP}.dlq"
            for s in standing if "semel.hold" in split_headers(s.record.headers)[1]
        }  # fmt: skip
        dropped: Counter[str] = Counter()
        told: Counter[str] = Counter()
        for tp, standing in found.items():
            if tp.topic == f"{APP}-audit":
                for entry in (audit.decode(s.record.value or b"", "the audit") for s in standing):
                    (dropped if entry.action == "drop" else told).update(
                        f"{APP}.dlq[{t.partition}]@{o}" for t in entry.letters for o in read(t.offsets)
                    )
        there: Counter[str] = Counter()
        for tp, standing in found.items():
            if tp.topic == SOURCE:
                letters = [dict(s.record.headers).get("semel.letter") or b"" for s in standing]
                there.update(letter.decode() for letter in letters if letter.startswith(b"payments.dlq"))
        twice = [letter for letter, times in (told + dropped).items() if times > 1]
        told.update({letter: times for letter, times in dropped.items() if letter in holding})
        violations = [Violation("a_letter_is_replayed_once", f"{letter} is in the audit twice", []) for letter in twice]
        for letter in told | there:
            if told[letter] != there[letter]:
                what = f"{letter} stands in the source {there[letter]} times, and in the audit {told[letter]} times"
                violations.append(Violation("a_letter_is_replayed_once", what, []))
        return [*self.broken, *violations[:3]]


def _unless_deadly(letter: Letter, value: bytes | None) -> Any:
    """What ends each process that handles it is not handled once more."""
    try:
        deadly = bool(orjson.loads(value or b"").get("kills"))
    except (ValueError, AttributeError):
        deadly = False
    return None if deadly else decisions.replayed(letter, value)
