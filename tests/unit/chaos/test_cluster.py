from __future__ import annotations

from pathlib import Path

from semel.chaos.cluster import Cluster
from semel.local import jars

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
    cluster = Cluster(tmp_path, brokers=2, version=jars.NEWEST, progress=print)
    logs = {node: cluster.kafka.log_path(node) for node in cluster.nodes}
    for log in logs.values():
        log.parent.mkdir(parents=True)
        log.write_text(AT + GOING)
    assert cluster.stuck() == {}
    with logs[2].open("a") as log:
        log.write(AT + STUCK[:70])
    assert cluster.stuck() == {}
    with logs[2].open("a") as log:
        log.write(STUCK[70:])
    [(node, why)] = cluster.stuck().items()
    assert node == 2
    assert why.startswith("__consumer_offsets-3: IllegalStateException: New last written offset 38579")
    assert cluster.stuck() == {}


def test_a_broker_that_coordinated_from_a_part_of_its_log_is_known_until_it_starts_again(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, brokers=1, version=jars.NEWEST, progress=print)
    log = cluster.kafka.log_path(1)
    log.parent.mkdir(parents=True)
    log.write_text(AT + "starting\n")
    assert not cluster.forgetful
    with log.open("a") as said:
        said.write(
            AT + "The state machine of the coordinator __consumer_offsets-3 is out of sync with the underlying log. The last\n"
            + AT + "Writing records to __consumer_offsets-3 failed due to: No in-memory snapshot for epoch 49154. Snapshot\n"
        )  # fmt: skip
    assert cluster.forgetful
    assert cluster.forgetful
    assert list(cluster.stuck().values()) == ["__consumer_offsets-3: No in-memory snapshot for epoch 49154. Snapshot"]


def test_what_a_broker_said_that_is_away_is_read_when_it_is_back(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, brokers=1, version=jars.NEWEST, progress=print)
    log = cluster.kafka.log_path(1)
    log.parent.mkdir(parents=True)
    log.write_text(AT + STUCK)
    cluster.away.add(1)
    assert cluster.stuck() == {}
    cluster.away.clear()
    assert list(cluster.stuck()) == [1]
