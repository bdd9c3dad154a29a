from __future__ import annotations

from pathlib import Path

import pytest

from semel.chaos import cluster
from semel.chaos.cluster import Cluster
from semel.errors import SemelError
from semel.local import jars
from semel.port import RpcError, RpcLost

AT = "2026-11-23T01:59:05.748 [group-coordinator-event-processor-2] ERROR o.a.k.CoordinatorRuntime - [GroupCoordinator id=1] "
STUCK = (
    "Failed to load metadata from __consumer_offsets-3 with epoch 48 due to java.lang.IllegalStateException: New last "
    "written offset 38579 of __consumer_offsets-3 must be greater than 38579..\n"
)
GOING = (
    "Failed to load metadata from __consumer_offsets-2 with epoch 40 due to org.apache.kafka.common.errors."
    "NotLeaderOrFollowerException: Stopped loading records.\n"
)


def test_a_broker_that_cannot_coordinate_is_told_by_its_log_once(tmp_path: Path) -> None:
    brokers = Cluster(tmp_path, brokers=2, version=jars.NEWEST, progress=print)
    logs = {node: brokers.kafka.log_path(node) for node in brokers.nodes}
    for log in logs.values():
        log.parent.mkdir(parents=True)
        log.write_text(AT + GOING)
    assert brokers.stuck() == {}
    with logs[2].open("a") as log:
        log.write(AT + STUCK[:70])
    assert brokers.stuck() == {}
    with logs[2].open("a") as log:
        log.write(STUCK[70:])
    [(node, why)] = brokers.stuck().items()
    assert node == 2
    assert why.startswith("__consumer_offsets-3: IllegalStateException: New last written offset 38579")
    assert brokers.stuck() == {}


FORGOT = "The state machine of the coordinator __consumer_offsets-3 is out of sync with the underlying log. The last\n"


async def test_what_a_broker_has_forgotten_counts_until_the_workers_have_borne_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot coordinate is started again at once, and workers that it took for others end a while after that."""
    brokers = unstarted(tmp_path)
    monkeypatch.setattr(brokers.kafka, "restart", lambda node: None)
    log = brokers.kafka.log_path(1)
    log.parent.mkdir(parents=True)
    # It is killed before anybody has read that.
    brokers.away.add(1)
    log.write_text(AT + FORGOT)
    await brokers.back(1)
    assert brokers.forgetful
    monkeypatch.setattr(cluster, "LINGERS_S", -1.0)
    await brokers.back(1)
    assert not brokers.forgetful


def test_a_broker_that_coordinated_from_a_part_of_its_log_is_known(tmp_path: Path) -> None:
    brokers = unstarted(tmp_path)
    log = brokers.kafka.log_path(1)
    log.parent.mkdir(parents=True)
    log.write_text(AT + "starting\n")
    assert not brokers.forgetful
    with log.open("a") as said:
        said.write(
            AT + FORGOT
            + AT + "Writing records to __consumer_offsets-3 failed due to: No in-memory snapshot for epoch 49154. Snapshot\n"
        )  # fmt: skip
    assert brokers.forgetful
    assert brokers.forgetful
    assert list(brokers.stuck().values()) == ["__consumer_offsets-3: No in-memory snapshot for epoch 49154. Snapshot"]


def test_what_a_broker_said_that_is_away_is_read_when_it_is_back(tmp_path: Path) -> None:
    brokers = unstarted(tmp_path)
    log = brokers.kafka.log_path(1)
    log.parent.mkdir(parents=True)
    log.write_text(AT + STUCK)
    brokers.away.add(1)
    assert brokers.stuck() == {}
    brokers.away.clear()
    assert list(brokers.stuck()) == [1]


def unstarted(folder: Path) -> Cluster:
    return Cluster(folder, brokers=1, version=jars.NEWEST, progress=print)


@pytest.fixture
def somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "bootstrap", "127.0.0.1:1")


@pytest.mark.usefixtures("somewhere")
async def test_brokers_are_asked_until_it_is_done(tmp_path: Path) -> None:
    answers: list[Exception | None] = [
        RpcLost("AlterConfigs", "the broker is away"),
        RpcError("AlterConfigs", 41),
        None,
    ]

    async def ask(bootstrap: str) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    await unstarted(tmp_path).ask("topic 'payments'", ask)
    assert not answers


@pytest.mark.usefixtures("somewhere")
async def test_brokers_that_never_come_to_it_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "ASKED_S", -1.0)

    async def ask(bootstrap: str) -> None:
        raise RpcLost("AlterConfigs", "nobody answers")

    with pytest.raises(SemelError, match=r"topic .payments. could not be set .*nobody answers"):
        await unstarted(tmp_path).ask("topic 'payments'", ask)
