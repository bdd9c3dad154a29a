"""The payments pipeline on semel and on stock Faust, under the same faults and the same events, audited from outside.

    python -m benchmarks.chaos_peers [--faults 12] [--seed 1] [--peer NAME]       --faults 0: the control

Each peer gets brokers of its own, two workers, the events and the plan of faults that `semel chaos` would make of the
seed (kills, freezes, SIGTERM, broken connections, dead brokers), and afterwards time until nothing moves any more. Then
the source is folded by the one rule that needs no code to explain: in each partition the first record of an id counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.report import say
from feeds.collect import committed
from semel import project
from semel.chaos.cluster import Cluster
from semel.chaos.conflicts import Altering
from semel.chaos.events import Delivery, deliveries, from_module
from semel.chaos.fault import Fault, Shape
from semel.chaos.load import Load
from semel.chaos.plan import schedule
from semel.chaos.proxy import Trouble
from semel.chaos.subject import subject
from semel.kafka import KafkaBroker
from semel.local import jars, ports
from semel.local.install import install
from semel.port import LATEST, TP, TopicSpec

ROOT = Path(__file__).resolve().parents[1]
KINDS: tuple[str, ...] = ("kill", "zombie", "term", "net", "broker-kill")
SOURCE, SINK, PARTITIONS, RATE = "payments", "settlements", 4, 200.0
SESSION_S = 6.0
# After each fault, so that a peer has time to come back before the next.
PAUSE_S = 5.0
# Nothing came out for so long: nothing more will. Longer than two sessions, a restart and a transaction's timeout.
QUIET_S = 75.0
DRAIN_S = 300.0


@dataclass(frozen=True)
class Peer:
    """`command(port, instance)` runs a worker; `{state}` of `environment` is its state directory."""

    name: str
    command: Callable[[int, str], list[str]]
    environment: Mapping[str, str]


def faust(guarantee: str) -> Peer:
    command = [sys.executable, "-m", "faust", "-A", "benchmarks.peers.stock_faust_payments", "worker", "-l", "warn"]
    environment = {"CHAOS_SOURCE": SOURCE, "CHAOS_SINK": SINK, "CHAOS_GUARANTEE": guarantee}
    return Peer(
        f"stock Faust, {guarantee}",
        lambda port, _: [*command, "--web-port", str(port), "--web-bind", "127.0.0.1"],
        environment | {"CHAOS_BROKER": "{broker}", "CHAOS_STATE": "{state}"},
    )


SEMEL = Peer(
    "semel",
    lambda port, name: [
        *(sys.executable, "-m", "semel", "worker", "pipelines.payments"),
        *("--instance", name, "--web-port", str(port), "--config", os.devnull),
    ],
    {"SEMEL_BROKER": "{broker}", "SEMEL_STATE_DIR": "{state}", "SEMEL_SESSION_TIMEOUT_MS": "6000"},
)
PEERS = {"semel": SEMEL, "exactly_once": faust("exactly_once"), "at_least_once": faust("at_least_once")}


class Process:
    def __init__(self, peer: Peer, name: str, folder: Path, broker: str) -> None:
        self.name = name
        self._command = peer.command(ports.choose(1)[0], name)
        filled = {"broker": broker, "state": str(folder / name)}
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("SEMEL_")}
        self._environment |= {k: v.format(**filled) for k, v in peer.environment.items()}
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.ended_by_itself = 0

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            assert self._process is not None
            self._process.send_signal(number)

    async def gone(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while self.alive and time.monotonic() < deadline:  # noqa: ASYNC110  (asked, not told)
            await asyncio.sleep(0.05)
        self.send(signal.SIGKILL)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def supervise(self) -> None:
        """What ended by itself is started again, as a supervisor would."""
        if self._process is not None and not self.alive:
            self.ended_by_itself += 1
            self.start()


@dataclass(frozen=True)
class Audit:
    """`wrong`: settlements whose balance is not that of the fold; `done_s`: until nothing moved any more."""

    peer: str
    seed: int
    faults: dict[str, int]
    events: int
    settlements: int
    lost: int
    doubled: int
    wrong: int
    ended_by_itself: int

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


async def inflict(fault: Fault, workers: list[Process], cluster: Cluster) -> None:
    worker = workers[fault.worker % len(workers)]
    match fault.kind:
        case "kill":
            victims = workers if fault.variant == "SIGKILL to all" else [worker]
            for victim in victims:
                victim.send(signal.SIGKILL)
                await victim.gone(10)
            await asyncio.sleep(fault.hold_s)
            for victim in victims:
                victim.start()
        case "zombie":
            worker.send(signal.SIGSTOP)
            await asyncio.sleep(fault.hold_s)
            worker.send(signal.SIGCONT)
        case "term":
            worker.send(signal.SIGTERM)
            await worker.gone(40)
            worker.start()
        case "broker-kill":
            await cluster.kill(1)
            await asyncio.sleep(fault.hold_s)
            await cluster.back(1)
        case _:
            # A proxy tells clients by their names, which differ between the peers: all connections are troubled.
            [proxy] = cluster.proxies
            proxy.cut()
            with ExitStack() as lasting:
                lasting.enter_context(proxy.trouble(Trouble(refuses=True)))
                await asyncio.sleep(fault.hold_s)


async def run(peer: Peer, seed: int, count: int, stream: Iterator[Delivery]) -> Audit:
    with tempfile.TemporaryDirectory(prefix="semel-chaos-peers-", ignore_cleanup_errors=True) as folder:
        async with Cluster(Path(folder) / "kafka", brokers=1, version=jars.NEWEST, progress=say) as cluster:
            broker = KafkaBroker(cluster.bootstrap, client_id="chaos-peers", rpc_timeout_ms=4000)
            await broker.start()
            workers: list[Process] = []
            try:
                await broker.create_topics(
                    [TopicSpec(t, PARTITIONS, 1, {"retention.ms": "-1"}) for t in (SOURCE, SINK)]
                )
                workers += [Process(peer, f"w{n}", Path(folder), cluster.workers_bootstrap) for n in (1, 2)]
                return await _run(peer, seed, count, stream, cluster, broker, workers)
            finally:
                for worker in workers:
                    worker.send(signal.SIGCONT)
                    worker.send(signal.SIGKILL)
                    await worker.gone(5)
                await broker.close()


async def _run(
    peer: Peer,
    seed: int,
    count: int,
    stream: Iterator[Delivery],
    cluster: Cluster,
    broker: KafkaBroker,
    workers: list[Process],
) -> Audit:
    load = Load(broker, SOURCE, PARTITIONS, stream, rate=RATE, seed=seed)
    for worker in workers:
        worker.start()
    await outputs_after(cluster, 0, 90, load)
    loading = asyncio.create_task(load.run())
    await outputs_after(cluster, 50, 90, load)
    faults: Counter[str] = Counter()
    for fault in schedule(seed, KINDS, Shape(len(workers), 1, SESSION_S)):
        if faults.total() >= count:
            break
        faults[fault.kind] += 1
        shown = f"net: all connections cut, refused for {fault.hold_s:.1f} s" if fault.kind == "net" else str(fault)
        say(f"{peer.name}: #{faults.total()} {shown}")
        await inflict(fault, workers, cluster)
        await asyncio.sleep(PAUSE_S)
        for worker in workers:
            worker.supervise()
    load.stop()
    await loading
    await load.finish(30)
    await quiet(cluster, workers)
    return await audit(peer, seed, faults, cluster, sum(w.ended_by_itself for w in workers))


async def outputs_after(cluster: Cluster, more_than: int, within_s: float, load: Load) -> None:
    """Waits until the sink is there and holds something, or that long: a peer that does not start is audited as well."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        held = await _ends(cluster)
        if held > more_than or (more_than == 0 and held >= 0):
            return
        await asyncio.sleep(0.5)


async def quiet(cluster: Cluster, workers: list[Process]) -> None:
    """Until no output has come for a while."""
    held, since, began = -1, time.monotonic(), time.monotonic()
    while time.monotonic() - since < QUIET_S and time.monotonic() - began < DRAIN_S:
        now = await _ends(cluster)
        if now != held:
            held, since = now, time.monotonic()
        for worker in workers:
            worker.supervise()
        await asyncio.sleep(1.0)


async def _ends(cluster: Cluster) -> int:
    """Committed settlements, control records included; -1 while there is no such topic, or no broker."""
    with suppress(Exception):
        broker = KafkaBroker(cluster.bootstrap, client_id="chaos-peers-ends", rpc_timeout_ms=2000)
        await broker.start()
        try:
            info = (await broker.topics([SINK])).get(SINK)
            if info is not None:
                tps = [TP(SINK, partition) for partition in range(info.partitions)]
                return sum((await broker.list_offsets(tps, LATEST, committed=True)).values())
        finally:
            await broker.close()
    return -1


async def audit(peer: Peer, seed: int, faults: Counter[str], cluster: Cluster, ended: int) -> Audit:
    """The source folded, and the settlements held against it. Read with aiokafka alone."""
    seen: set[tuple[int, str]] = set()
    balances: defaultdict[str, int] = defaultdict(int)
    expected: dict[str, int] = {}
    async for record in committed(cluster.bootstrap, SOURCE):
        payment = json.loads(record.value or b"{}")
        if (record.partition, payment["id"]) in seen:
            continue
        seen.add((record.partition, payment["id"]))
        balances[payment["account"]] += payment["amount"]
        expected[payment["id"]] = balances[payment["account"]]
    found: defaultdict[str, list[int]] = defaultdict(list)
    with suppress(LookupError):
        async for record in committed(cluster.bootstrap, SINK):
            settled = json.loads(record.value or b"{}")
            found[settled["id"]].append(settled["balance"])
    return Audit(
        peer.name,
        seed,
        dict(faults),
        events=len(expected),
        settlements=sum(map(len, found.values())),
        lost=len(expected.keys() - found.keys()),
        doubled=sum(len(balances) > 1 for balances in found.values()),
        wrong=sum(any(balance != expected.get(ident) for balance in held) for ident, held in found.items()),
        ended_by_itself=ended,
    )


def now_ms() -> int:
    return int(time.time() * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peer", choices=PEERS, action="append")
    asked = parser.parse_args()
    install(jars.NEWEST, say)
    audits: list[Audit] = []
    for name in asked.peer or PEERS:
        # No bytes that cannot be decoded: what becomes of them is not compared here.
        payments = subject("pipelines.payments", project.load("pipelines.payments", ROOT))
        made = from_module(payments, "pipelines.payments", asked.seed)
        assert made is not None
        stream = deliveries(replace(made, json=False), asked.seed, now_ms, Altering(payments))
        audits.append(asyncio.run(run(PEERS[name], asked.seed, asked.faults, stream)))
        say(json.dumps(asdict(audits[-1])))
    sys.stdout.write(table(audits))


def table(audits: list[Audit]) -> str:
    """Side by side, as the documentation has it."""
    rows = [["", *(a.peer for a in audits)], ["---", *("---:" for _ in audits)]]
    for name in ("events", "settlements", "lost", "doubled", "wrong", "ended_by_itself"):
        rows.append([name.replace("_", " "), *(f"{getattr(a, name):,}" for a in audits)])
    rows.append(["verdict", *("clean" if a.ok else "violated" for a in audits)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
