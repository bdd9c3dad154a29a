"""Reading a dead-letter topic: what is committed in it, up to the ends that it had when we began, a piece at a time."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from semel.dead_letters.letter import Letter, is_of, letter_of
from semel.errors import ConfigError, SemelError
from semel.plan import Plan
from semel.port import TP, TopicInfo
from semel.task.read_committed import CommittedLogs

# What is read, how many records of it are, and of how many in all.
Progress = Callable[[str, int, int], None]

_POSITION = re.compile(r"(?:(?P<topic>[a-zA-Z0-9._-]*)\[(?P<in_topic>\d+)\]|(?P<partition>\d+))[@:](?P<offset>\d+)")


class NoLetters(SemelError):
    """There is no such dead letter, or no topic of them."""


def position(text: str, plan: Plan) -> tuple[TP, int]:
    """`3@17`, `3:17`, `[3]@17` or `payments.dlq[3]@17`; or `payments[3]@17`, where the event stands in a source. ConfigError."""
    match = _POSITION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{text!r} is no position; write PARTITION@OFFSET of {plan.dead_letter_topic}, as 3@17: `semel dlq ls` has one "
            "of each group"
        )
    topic = match["topic"] or plan.dead_letter_topic
    if topic != plan.dead_letter_topic and topic not in plan.sources:
        raise ConfigError(
            f"{text!r} is a position in {topic!r}, which is neither the dead-letter topic {plan.dead_letter_topic!r} nor a "
            f"source of {plan.app!r}; `semel dlq ls` has a position of each group"
        )
    return TP(topic, int(match["in_topic"] or match["partition"])), int(match["offset"])


class LetterReader:
    """Of one pipeline. What others put into the topic is passed over."""

    def __init__(self, logs: CommittedLogs, plan: Plan, tell: Progress | None = None) -> None:
        self._logs = logs
        self._plan = plan
        self._tell = tell

    async def letters(self) -> AsyncGenerator[Letter]:
        """All of them. NoLetters; RpcError, RpcLost, Unreadable."""
        async with aclosing(self.records()) as records:
            async for letter, ours in records:
                if ours:
                    yield letter

    async def records(self) -> AsyncGenerator[tuple[Letter, bool]]:
        """Everything in the topic, and whether it is a letter of this pipeline. NoLetters; RpcError, RpcLost, Unreadable."""
        app, logs = self._plan.app, self._logs
        tps = await self.partitions()
        starts, ends = await logs.starts(tps), await logs.ends(tps)
        done, total = 0, sum(ends[tp] - starts[tp] for tp in tps)
        for tp in tps:
            async with aclosing(logs.read(tp, starts[tp], ends[tp])) as pieces:
                async for piece in pieces:
                    for record in piece.records:
                        letter = letter_of(tp, record)
                        yield letter, is_of(letter, app)
                    done += piece.next - piece.start
                    if self._tell is not None:
                        self._tell("dead letters", done, total)

    async def letter(self, tp: TP, offset: int) -> Letter:
        """The one that stands there; where that is in a source, the last one of that event, for which all are read.

        NoLetters; RpcError, RpcLost, Unreadable.
        """
        if tp.topic == self._plan.dead_letter_topic:
            return await self._at(tp, offset)
        source, latest = f"{tp.topic}[{tp.partition}]@{offset}", None
        async for letter in self.letters():
            if letter.source == source and (latest is None or letter.last_ms >= latest.last_ms):
                latest = letter
        if latest is None:
            raise NoLetters(f"there is no dead letter of the event at {source} in {self._plan.dead_letter_topic!r}")
        return latest

    async def _at(self, tp: TP, offset: int) -> Letter:
        tps = await self.partitions()
        if tp not in tps:
            raise NoLetters(f"{tp.topic!r} has the partitions 0 to {len(tps) - 1}; there is no {tp.partition}")
        starts, ends = await self._logs.starts([tp]), await self._logs.ends([tp])
        where = f"{tp.topic}[{tp.partition}]@{offset}"
        if not starts[tp] <= offset < ends[tp]:
            deleted = f"what stood before offset {starts[tp]} is deleted"
            if offset < starts[tp]:
                why = deleted
            elif starts[tp] == ends[tp]:
                why = "the partition is empty" + (f", and {deleted}" if starts[tp] else "")
            else:
                why = f"the partition has offsets from {starts[tp]} to {ends[tp] - 1}"
            raise NoLetters(f"there is no dead letter at {where}: {why}; `semel dlq ls` has one of each group")
        async with aclosing(self._logs.read(tp, offset, offset + 1)) as pieces:
            async for piece in pieces:
                for record in piece.records:
                    if record.offset == offset:
                        return letter_of(tp, record)
        raise NoLetters(
            f"there is no dead letter at {where}: what stands there is not committed, or a marker of a transaction; `semel dlq "
            "ls` and `semel dlq show --group` have positions"
        )

    async def partitions(self) -> list[TP]:
        info = await self.topic()
        return [TP(info.name, partition) for partition in range(info.partitions)]

    async def topic(self) -> TopicInfo:
        """NoLetters."""
        topic = self._plan.dead_letter_topic
        info = (await self._logs.asked(lambda: self._logs.broker.topics([topic]))).get(topic)
        if info is None:
            raise NoLetters(
                f"there is no dead-letter topic {topic!r} on this broker: a worker of {self._plan.app!r} creates it when it "
                "starts; see the `broker` setting, and dead_letters= of the pipeline"
            )
        return info
