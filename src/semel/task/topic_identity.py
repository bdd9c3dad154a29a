"""Topic identity: whether topics are those of positions and state, and hold what is yet to be read (rules 17, 18, 21)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from semel.codes import Code
from semel.errors import TopicChanged
from semel.plan import Plan
from semel.port import TP, RpcError, TopicInfo
from semel.state.positions import Position, TopicPosition


def check_logs(
    plan: Plan,
    partition: int,
    recorded: Position | None,
    group_offsets: Mapping[TP, int],
    topics: Mapping[str, TopicInfo],
    *,
    adopt: bool,
    holds_state: bool,
) -> None:
    """TopicChanged where state and position are not of one life (rules 10, 17, 18).

    A changelog deleted and created again restores to an empty table whose events are behind the position; positions
    deleted and created again would have the events run twice over the state that already has them.
    """
    if recorded is None and holds_state:
        # What the group was told was committed together with the state, so it may stand in for the position.
        known = bool(group_offsets) and all(offset >= 0 for offset in group_offsets.values())
        if adopt and known:
            return
        ways = "start once with --adopt to go on from the group's offsets with that state, or " if known else ""
        raise TopicChanged(
            f"{plan.app!r} has state of partition {partition}, but {plan.positions_topic!r} does not say how far it came: "
            "that topic was deleted and created again, or lost its records. To process events again over state that has "
            f"them would count them twice; {ways}run `semel reset` to begin anew with empty state"
        )
    if recorded is not None:
        check_log_ids(plan.app, recorded.logs, topics)


def of_a_life_that_is_over(
    partition: int, sources: Iterable[str], stored: Position, first: Position | None, topics: Mapping[str, TopicInfo]
) -> bool:
    """Whether a local position that no log knows of is from before a reset, which began anew on other sources.

    They had no such partition then, so none was recorded; they have grown since. `first`: the record of the first task, the
    authority for what the sources are.
    """
    if first is None:
        return False
    recorded = {**first.left, **first.topics}
    former = all(name not in recorded or recorded[name].id != at.id for name, at in stored.topics.items())
    return former and all(
        name in first.topics and first.topics[name].id == topics[name].id and partition >= first.topics[name].since
        for name in sources
    )


def check_log_ids(app: str, ids: Mapping[str, str], topics: Mapping[str, TopicInfo]) -> None:
    """TopicChanged where one of the logs that state went to is another topic now. One that is missing is passed over."""
    for name, topic_id in ids.items():
        if name in topics and topics[name].id != topic_id:
            raise TopicChanged(
                f"topic {name!r} was deleted and created again: state of {app!r} was in the old one, and its positions are "
                "past the events that made it. Run `semel reset` to rebuild the state from the source, or use another "
                "pipeline name"
            )


def bereft(
    plan: Plan, partition: int, recorded: Position | None, starts: Mapping[str, int], at: Mapping[str, int]
) -> list[str]:
    """Logs of state that somebody deleted records from, in words. TopicChanged where what is gone is yet to be read.

    semel deletes nothing but expired marks, and compaction leaves the start of a log alone (rule 21). `starts`: where the logs
    begin; `at`: how far each is in the local store.
    """
    notes: list[str] = []
    for name in plan.state_logs if recorded is not None else ():
        assert recorded is not None
        marks = name == plan.marks_topic
        kept = recorded.trimmed if marks else 0
        start = starts.get(name, 0)
        if name not in recorded.logs or kept < 0 or start <= kept:
            continue
        what = f"records of {name}[{partition}] were deleted: it begins at offset {start}, and semel deleted " + (
            f"expired marks up to {kept}" if marks and kept else "nothing of it"
        )
        lost = "ids that are redelivered would take effect again" if marks else "their rows would begin anew"
        stands = at.get(name, 0)
        # Each commit leaves one offset behind its records, which ends it.
        if start - stands > (1 if stands else 0):
            raise TopicChanged(
                f"{what}. Somebody did it by hand, or Kafka by a retention that the topic has or had; what is gone is not in the "
                f"local state, and {lost}. Start a worker on a local state that has it, if one is left; or run `semel reset` to "
                "rebuild state from the source, which writes results again, and does so without the events that the source "
                "no longer holds"
            )
        notes.append(
            f"{what}. The local state of this worker has it still, as may no other: one that has to read the log again is "
            "refused. Run `semel reset` when results may be written again"
        )
    return notes


def check_topic(plan: Plan, at: TopicPosition, info: TopicInfo) -> None:
    """TopicChanged where a source topic is not what it was (rule 17). One that grew is, where nothing belongs to a key.

    RpcError where this broker does not know all of it yet: Kafka takes no partition away.
    """
    if at.id != info.id:
        raise source_remade(plan.app, info.name)
    if info.partitions < at.partitions:
        raise not_known(f"a broker knows {info.partitions} of {at.partitions} partitions of {info.name!r}")
    if at.partitions != info.partitions and not (plan.may_grow and at.partitions < info.partitions):
        raise source_resized(plan.app, info.name, at.partitions, info.partitions)


def not_known(words: str) -> RpcError:
    """What a broker would say that has not heard of it yet."""
    return RpcError("Metadata", Code.UNKNOWN_TOPIC_OR_PARTITION, words)


def source_remade(app: str, name: str) -> TopicChanged:
    return TopicChanged(
        f"topic {name!r} was deleted and created again: the positions and dedup marks of {app!r} belong to the old "
        "one. Run `semel reset` to start on the new topic with empty state, or use another pipeline name"
    )


def source_resized(app: str, name: str, before: int, now: int) -> TopicChanged:
    if now < before:
        # Kafka takes no partition away.
        return source_remade(app, name)
    return TopicChanged(
        f"topic {name!r} has {now} partitions now, {before} when {app!r} last ran: keys moved between partitions, away "
        "from their rows and dedup marks. Either run `semel reset --to TIME`, with the time at which it grew, to go on from "
        "there with empty state: what was written before stands where its keys do not belong any more. Or copy all events to a "
        "new topic, declare that as the source, and run `semel reset --to earliest`, which writes results again"
    )
