"""A pipeline under test: its topics, its workers, what is fed to it, and the reckoning at the end."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from semel.state import positions
from tests.broker import logs
from tests.broker.logs import Line, Message
from tests.broker.truth import Found, LawBroken, Truth, broken_laws, truth_of
from tests.broker.workers import PROJECT, SEMEL, WorkerProcess

# Short, so that a dead worker is noticed soon; the local broker allows 500 ms and more.
SESSION_TIMEOUT_MS = 3_000
ALONE_S = 10.0  # a test that kills its workers starts one again sooner
SETTINGS = {"SEMEL_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS), "SEMEL_COMMIT_INTERVAL_MS": "30"}


class Ledger:
    """Makes workers of one pipeline, stops them all at the end. `directory` holds their state and logs."""

    def __init__(
        self,
        bootstrap: str,
        name: str,
        directory: Path,
        *,
        target: str = "ledger:pipeline",
        partitions: int = 4,
        replicas: int = 1,
    ) -> None:
        self.bootstrap = bootstrap
        self.name = name
        self.directory = directory
        self.partitions = partitions
        self.replicas = replicas
        self.workers: list[WorkerProcess] = []
        self.target = target
        self._settling = False
        self._feeding: list[asyncio.Task[None]] = []

    # -- its topics

    @property
    def source(self) -> str:
        return f"{self.name}.payments"

    @property
    def sink(self) -> str:
        return f"{self.name}.settlements"

    @property
    def changelog(self) -> str:
        return f"{self.name}-balances-changelog"

    @property
    def positions(self) -> str:
        return f"{self.name}-positions"

    @property
    def dead_letter_topic(self) -> str:
        return f"{self.name}.dlq"

    async def create(self, **configs: str) -> Ledger:
        named = {key.replace("_", "."): value for key, value in configs.items()}
        await logs.create(self.bootstrap, self.source, self.partitions, named, self.replicas)
        return self

    # -- its workers

    def worker(
        self, instance: str = "w1", *, state: str = "state", bootstrap: str = "", log: str = "", **environment: str
    ) -> WorkerProcess:
        """A worker, not started. Another `state` is another machine's disk."""
        made = WorkerProcess(
            self.target,
            instance=instance,
            bootstrap=bootstrap or self.bootstrap,
            state_dir=self.directory / state,
            log_file=self.directory / f"{log or instance}.log",
            environment={"PIPELINE": self.name, **SETTINGS, **environment},
        )
        self.workers.append(made)
        return made

    async def command(self, name: str, *arguments: str) -> tuple[int, str]:
        """`semel NAME PIPELINE ...` run to its end: its exit code and all it said."""
        code, said, complained = await self.run(name, self.target, *arguments)
        return code, said + complained

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """`semel ...` run to its end: its exit code, its standard output and its standard error."""
        running = await asyncio.create_subprocess_exec(
            SEMEL,
            *arguments,
            cwd=PROJECT,
            env={**os.environ, "SEMEL_BROKER": self.bootstrap, "PIPELINE": self.name, **SETTINGS},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await running.communicate()
        assert running.returncode is not None
        return running.returncode, said.decode(), complained.decode()

    async def close(self) -> None:
        for feeding in self._feeding:
            feeding.cancel()
        await asyncio.gather(*self._feeding, return_exceptions=True)
        for worker in self.workers:
            worker.kill9()

    def report(self) -> str:
        return "\n".join(worker.log_end() for worker in self.workers)

    # -- what goes in

    async def feed(self, messages: Iterable[Message], per_s: float | None = None) -> None:
        await logs.send(self.bootstrap, self.source, messages, per_s=per_s)

    def feed_beside(self, messages: Sequence[Message], per_s: float) -> asyncio.Task[None]:
        """Feed at a steady rate while the test goes on, to the end of the messages or until `settle`."""

        def until_settled() -> Iterator[Message]:
            for message in messages:
                if self._settling:
                    return
                yield message

        feeding = asyncio.create_task(self.feed(until_settled(), per_s))
        self._feeding.append(feeding)
        return feeding

    # -- how far it is

    async def done(self, within_s: float = 30.0) -> int:
        """Source records done, as committed to the group; a broker that is away is waited for."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                offsets = await logs.group_offsets(self.bootstrap, self.name)
            except KafkaError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
                continue
            return sum(at for (topic, _), at in offsets.items() if topic == self.source)

    async def parked(self) -> int:
        """Events before the positions that are not done."""
        last = {
            line.partition: positions.decode(line.value, "").parked
            for line in await logs.read(self.bootstrap, f"{self.name}-positions")
            if line.key == positions.KEY and line.value is not None
        }
        return sum(last.values())

    async def until_done(self, records: int, within_s: float = 60.0) -> None:
        """Waits until that many source records are committed."""
        alive_at = time.monotonic()
        deadline = alive_at + within_s
        while (done := await self.done()) < records:
            if any(worker.running for worker in self.workers):
                alive_at = time.monotonic()
            self._expect(time.monotonic() < alive_at + ALONE_S, f"{done} of {records} records done, and no worker runs")
            self._expect(time.monotonic() < deadline, f"{done} of {records} records done after {within_s} s")
            await asyncio.sleep(0.05)

    async def drained(self, within_s: float = 90.0) -> None:
        """Waits until the group has committed the end of the source, and nothing is parked."""
        alive_at = time.monotonic()
        deadline = alive_at + within_s
        while True:
            try:
                end = sum((await logs.ends(self.bootstrap, self.source)).values())
                done = await self.done()
                if done == end and not await self.parked():
                    return
            except KafkaError as lost:
                end, done = -1, f"unknown ({lost!r})"
            if any(worker.running for worker in self.workers):
                alive_at = time.monotonic()
            self._expect(time.monotonic() < alive_at + ALONE_S, f"{done} of {end} records done, and no worker runs")
            self._expect(time.monotonic() < deadline, f"{done} of {end} records done after {within_s} s")
            await asyncio.sleep(0.05)

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise LawBroken(f"{otherwise}\n{self.report()}")

    # -- the reckoning

    async def truth(self) -> Truth:
        return truth_of(await logs.read(self.bootstrap, self.source))

    async def found(self, ask: WorkerProcess | None = None) -> Found:
        names = (self.sink, self.changelog, self.positions, self.dead_letter_topic)
        read: list[list[Line]] = [await logs.read(self.bootstrap, name) for name in names]
        offsets = await logs.group_offsets(self.bootstrap, self.name)
        viewed: dict[str, Any] | None = None
        if ask is not None:
            await ask.ready()
            viewed = await ask.rows("balances")
        return Found(
            *read,
            group_offsets={p: at for (topic, p), at in offsets.items() if topic == self.source},
            ends=await logs.ends(self.bootstrap, self.source),
            viewed=viewed,
        )

    async def expect_whole_epochs(self) -> Truth:
        """Whatever was killed when: what is committed is what the source says up to the committed offsets, no more."""
        found = await self.found()
        at = found.group_offsets
        truth = truth_of(await logs.read(self.bootstrap, self.source), at)
        if broken := broken_laws(truth, dataclasses.replace(found, ends={})):
            raise LawBroken("\n".join(["as of the committed offsets:", *broken, self.report()]))
        return truth

    async def settle(self, ask: WorkerProcess | None = None, within_s: float = 90.0) -> Truth:
        """Ends what feeds beside, waits until all is done, then fails where a law is broken.

        `ask`: whose web views must agree as well.
        """
        self._settling = True
        await asyncio.gather(*self._feeding)
        await self.drained(within_s)
        truth = await self.truth()
        broken = broken_laws(truth, await self.found(ask))
        if broken:
            raise LawBroken("\n".join([*broken, self.report()]))
        return truth
