"""State directories that are behind, ahead, foreign, taken twice, full or read-only: said, and never believed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from semel.local import jars
from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Message
from tests.broker.truth import payments
from tests.broker.workers import USAGE, WorkerProcess

pytestmark = pytest.mark.broker

MakeKafka = Callable[..., LocalKafka]

TAKEN = 4
REBUILT = "its store is rebuilt from the changelogs"


def state_of(ledger: Ledger, worker: WorkerProcess) -> Path:
    return worker.state_dir / ledger.name / worker.instance


async def restored(worker: WorkerProcess) -> int:
    """Changelog records that its tasks read since they were last assigned."""
    _, said = await worker.get("/pipelines")
    return sum(task["restored"] for task in said[0]["tasks"])


# -- behind and ahead of the log


async def test_a_store_older_than_the_log_is_brought_up_to_it(ledger: Ledger) -> None:
    await ledger.feed(payments(111, 3_000))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    state = state_of(ledger, worker)
    side_outputs = shutil.copytree(state, ledger.directory / "aside")
    before = sum((await logs.ends(ledger.bootstrap, ledger.changelog)).values())
    await ledger.feed(payments(112, 1_000))
    worker.start()
    await ledger.drained()
    assert await worker.stopped() == 0
    shutil.rmtree(state)
    shutil.move(side_outputs, state)
    await ledger.feed(payments(113, 1_000))
    worker.start()
    await ledger.settle(worker)
    assert REBUILT not in worker.log
    read = await restored(worker)
    logged = (ledger.changelog, ledger.positions, f"{ledger.name}-dedup-changelog")
    whole = sum([sum((await logs.ends(ledger.bootstrap, name)).values()) for name in logged])
    assert 0 < read < whole - before, "it read what it had"


async def test_a_worker_without_its_disk_is_restored_from_the_changelogs(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(114, 3_000))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    shutil.rmtree(worker.state_dir)
    worker.start()
    await worker.ready()
    assert await restored(worker) > 1_000
    await ledger.feed(payments(114, 3_000))  # all of it again: every event is known
    truth = await ledger.settle(worker)
    assert truth.duplicates > 3_000


@pytest.mark.parametrize("kafka_version", [jars.NEWEST], indirect=True)
async def test_a_changelog_that_is_compacted_while_it_is_restored_gives_the_same_rows(
    own_kafka: MakeKafka, tmp_path: Path
) -> None:
    """What was read before is cleaned away behind the reader, what it reads next ahead of it."""
    kafka = own_kafka(properties={"log.cleaner.backoff.ms": "100"})
    kafka.start()
    ledger = Ledger(kafka.bootstrap, "compacted", tmp_path, partitions=1)
    try:
        await ledger.create()
        # Many segments, and a log that is never dirty enough, until it shall be.
        rolling = {"cleanup.policy": "compact", "segment.ms": "200"}
        await logs.create(kafka.bootstrap, ledger.changelog, 1, {**rolling, "min.cleanable.dirty.ratio": "1.0"})
        worker = ledger.worker(SEMEL_SESSION_TIMEOUT_MS="60000").start()
        await ledger.feed(long_keyed(12_000), per_s=2_000)
        await ledger.drained()
        assert await worker.stopped() == 0
        shutil.rmtree(worker.state_dir)
        before = await logs.read(kafka.bootstrap, ledger.changelog)
        assert sum(len(line.key or b"") for line in before) > 2_000_000, "it is read in three fetches or more"
        worker.start(failpoint="restore.chunk:stop:2")
        await worker.frozen()
        await logs.configure(kafka.bootstrap, ledger.changelog, {**rolling, "min.cleanable.dirty.ratio": "0.0"})
        async with asyncio.timeout(60):
            while len(await logs.read(kafka.bootstrap, ledger.changelog)) > len(before) // 2:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        worker.thaw()
        await worker.ready()
        await ledger.feed(long_keyed(500, seed=133))
        await ledger.settle(worker)
        assert REBUILT not in worker.log
    finally:
        await ledger.close()


def long_keyed(count: int, *, seed: int = 132) -> list[Message]:
    """Payments to accounts with long names: a fetch of their changelog holds a part of it only."""
    found: list[Message] = []
    for message in payments(seed, count, accounts=400):
        event = json.loads(message.value)
        event["account"] += "-" * 300
        found.append(Message(event["account"].encode(), json.dumps(event).encode()))
    return found


@pytest.mark.parametrize("kafka_version", [jars.NEWEST], indirect=True)
async def test_a_store_ahead_of_its_log_is_rebuilt(own_kafka: MakeKafka, make_ledger: MakeLedger) -> None:
    """The cluster came back from an older copy of itself; the worker's disk did not."""
    kafka, ledger, worker = await went_back(own_kafka, make_ledger)
    worker.start()
    await worker.said(f"{REBUILT}: it is at .* beyond the end")
    await ledger.feed(payments(119, 400))
    await ledger.settle(worker)
    assert kafka.running


@pytest.mark.parametrize("kafka_version", [jars.NEWEST], indirect=True)
async def test_a_store_whose_last_commit_is_somebody_elses_record_is_rebuilt(
    own_kafka: MakeKafka, make_ledger: MakeLedger
) -> None:
    """As before, and another worker wrote on meanwhile: every offset is there, and holds something else."""
    kafka, ledger, worker = await went_back(own_kafka, make_ledger)
    other = ledger.worker("w2").start()
    for n in range(40):
        await ledger.feed(payments(1_000 + n, 60))
        await ledger.drained()
    assert await other.stopped() == 0
    worker.start()
    await worker.said(f"{REBUILT}: .* was written by")
    await ledger.feed(payments(120, 400))
    await ledger.settle(worker)
    assert kafka.running


async def went_back(own_kafka: MakeKafka, make_ledger: MakeLedger) -> tuple[LocalKafka, Ledger, WorkerProcess]:
    """A broker set back to an earlier copy of its data, and a worker, stopped, that has seen the later one."""
    kafka = own_kafka()
    kafka.start()
    ledger = await make_ledger(kafka)
    await ledger.feed(payments(117, 1_000))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    kafka.stop()
    side_outputs = shutil.copytree(kafka.data_dir, ledger.directory / "broker")
    kafka.start()
    await ledger.feed(payments(118, 500))
    worker.start()
    await ledger.drained()
    assert await worker.stopped() == 0
    kafka.stop()
    shutil.rmtree(kafka.data_dir)
    shutil.move(side_outputs, kafka.data_dir)
    kafka.start()
    return kafka, ledger, worker


async def test_a_damaged_store_is_only_a_copy(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(121, 1_000))
    worker = ledger.worker().start()
    await ledger.drained()
    worker.kill9()
    database = state_of(ledger, worker) / "db"
    files = [*database.glob("MANIFEST-*"), *database.glob("*.sst")]
    assert files
    for file in files:
        file.write_bytes(b"\x00" * 100)
    await ledger.feed(payments(122, 500))
    worker.start()
    await worker.said("is damaged .*: it is rebuilt from the changelogs")
    await ledger.settle(worker)


# -- foreign


async def test_a_state_directory_of_another_app_is_refused(ledger41: Ledger) -> None:
    worker = ledger41.worker()
    foreign = state_of(ledger41, worker)
    foreign.mkdir(parents=True)
    (foreign / "OWNER.json").write_text(json.dumps({"format": 1, "app": "other", "instance": "w1"}))
    await worker.start().refuses("belongs to app 'other'", ledger41.name, "state_dir")


async def test_a_state_directory_of_another_format_is_refused(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(123, 100))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    marker = state_of(ledger, worker) / "OWNER.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99}))
    await worker.start().refuses("state format 99", "run the version that wrote it", "rebuilt from the changelogs")


async def test_state_of_another_declaration_is_refused_and_kept(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(124, 300))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    await ledger.feed(payments(125, 300))
    worker.start(BALANCE="float")
    await worker.refuses("the value was int, is float", "migrate=", "semel reset")
    await ledger.settle(worker.start())


async def test_positions_of_another_version_are_refused(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(126, 100))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    later = [Message(b"position", json.dumps({"v": 9}).encode(), partition=p) for p in range(4)]
    await logs.send(ledger.bootstrap, ledger.positions, later)
    await worker.start().refuses(ledger.positions, "another version of semel", "semel reset")


# -- one name, two workers


async def test_a_second_worker_of_the_same_name_on_one_machine_ends_with_4(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(127, 500))
    first = ledger.worker("w1").start()
    await first.ready()
    second = ledger.worker("w1", log="second").start()
    assert await second.ended() == TAKEN
    assert "instance 'w1' runs already" in second.log
    assert "--instance" in second.log
    await ledger.feed(payments(130, 200))
    await ledger.settle(first)
    assert len(re.findall("generation", first.log)) == 1, "the first did not notice"


async def test_a_second_worker_of_the_same_name_on_another_machine_ends_the_first_with_4(ledger: Ledger) -> None:
    """The later one wins, as Kafka has it; two that fence each other in turns would never end."""
    ledger.feed_beside(payments(128, 8_000), per_s=400)
    first = ledger.worker("w1", state="machine-1").start()
    await ledger.until_done(100)
    second = ledger.worker("w1", state="machine-2", log="second").start()
    assert await first.ended() == TAKEN
    assert "--instance" in first.log
    await ledger.settle(second)


# -- the disk


@contextmanager
def mounted(at: Path, command: str, needs: str) -> Iterator[Path]:
    """A file system of its own, that this command mounts at `at`."""
    at.mkdir(parents=True)
    made = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a file system of its own needs {needs}: {made.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def disk(at: Path, size_mb: int) -> AbstractContextManager[Path]:
    """A small one, in memory."""
    return mounted(at, f"mount -t tmpfs -o size={size_mb}m tmpfs {at}", "root")


def make_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def block_device(at: Path, size_mb: int) -> AbstractContextManager[Path]:
    """One that fails as on a broken device (`break_device`): files stay open, nothing is written."""
    image = at.with_suffix(".img")
    image.write_bytes(b"")
    os.truncate(image, size_mb << 20)
    command = f"mkfs.ext4 -q -E root_owner {image} && mount -o loop,errors=remount-ro {image} {at}"
    return mounted(at, command, "root and ext4")


def break_device(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,abort", str(folder)], check=True)


def mend_device(folder: Path) -> None:
    """What an administrator does: unmount, check, mount. Nobody may have a file open."""
    image = folder.with_suffix(".img")
    subprocess.run(["umount", str(folder)], check=True)
    subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, check=False)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    os.write(file.fileno(), b"x" * size)
            except OSError:
                continue
    return filler


async def test_a_disk_that_runs_full_pauses_the_work_and_loses_nothing(ledger41: Ledger) -> None:
    ledger = ledger41
    with disk(ledger.directory / "small", 64) as small:
        ledger.feed_beside(payments(129, 6_000), per_s=500)
        worker = ledger.worker(state="small").start()
        await ledger.until_done(300)
        filler = fill(small)
        await worker.said("free some space")
        status, said = await worker.get("/readyz")
        assert (status, "No space left" in str(said)) == (503, True), said
        await asyncio.sleep(2)
        filler.unlink()
        await ledger.settle(worker)
        worker.kill9()


async def test_a_disk_that_turns_read_only_stops_the_work_and_loses_nothing(ledger41: Ledger) -> None:
    ledger = ledger41
    with block_device(ledger.directory / "device", 64) as device:
        ledger.feed_beside(payments(131, 12_000), per_s=500)
        broken = ledger.worker("w1", state="device/state").start()
        await ledger.until_done(300)
        break_device(device)
        await broken.said("Read-only file system.*mend the disk")
        status, said = await broken.get("/readyz")
        assert (status, "Read-only" in str(said)) == (503, True), said
        done = await ledger.done()
        await asyncio.sleep(2)
        assert await ledger.done() == done, "it committed what its store cannot take"
        assert "unexpected" not in broken.log, broken.log_end()
        assert await broken.stopped() == 0
        # Somebody else goes on meanwhile; then the first is back on a disk that has what was on it when it broke.
        other = ledger.worker("w2").start()
        await ledger.until_done(done + 500)
        assert await other.stopped() == 0
        mend_device(device)
        broken.start()
        await ledger.settle(broken)
        broken.kill9()


async def test_a_disk_full_at_the_start_is_said(ledger41: Ledger) -> None:
    with disk(ledger41.directory / "small", 1) as small:
        fill(small)
        worker = ledger41.worker(state="small").start()
        await worker.refuses(str(small), "free some space")


async def test_a_read_only_disk_is_said(ledger41: Ledger) -> None:
    with disk(ledger41.directory / "small", 1) as small:
        make_read_only(small)
        worker = ledger41.worker(state="small").start()
        await worker.refuses(str(small), "Read-only file system", code=USAGE)
