"""What consumers get that read committed records only: the results and the dead letters of a pipeline under test."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from semel.memory.cluster import MemoryCluster
from semel.plan import Plan
from semel.port import TP, Record
from semel.testing.results import DeadLetter, TopicRecord, letter_of, record_of
from semel.topic import Topic


class ResultsConsumer:
    """Reads when told to (`read`): at each commit, so that results stand in the order of commits, and before each look.

    `plans`: those of all workers so far; each knows the topics that its worker has opened.
    """

    def __init__(self, cluster: MemoryCluster, source: Topic, plans: Iterable[Plan]) -> None:
        self._cluster = cluster
        self._source = source
        self._plans = plans
        self._next: dict[TP, int] = {}
        self._undecoded: list[tuple[TP, Record]] = []
        self._outputs: list[TopicRecord] = []
        self._letters: list[DeadLetter] = []
        self._taken = 0

    @property
    def topics(self) -> Mapping[str, Topic]:
        """Those that results go to."""
        return {topic.name: topic for plan in self._plans for topic in (*plan.named, *plan.outputs)}

    def read(self) -> None:
        self._undecoded += self._fresh(self.topics)
        letters = {plan.dead_letter_topic for plan in self._plans}
        self._letters += [letter_of(self._source, record) for _, record in self._fresh(letters)]

    def outputs(self) -> list[TopicRecord]:
        """All so far. PipelineTesterError where one cannot be read as its topic is declared."""
        self.read()
        topics = self.topics
        self._outputs += [record_of(topics[tp.topic], tp, record) for tp, record in self._undecoded]
        self._undecoded.clear()
        return self._outputs

    def take(self) -> list[TopicRecord]:
        """Those since this was last called."""
        records = self.outputs()[self._taken :]
        self._taken += len(records)
        return records

    def letters(self) -> list[DeadLetter]:
        self.read()
        return self._letters

    @property
    def output_count(self) -> int:
        return len(self._outputs) + len(self._undecoded)

    def _fresh(self, topics: Iterable[str]) -> list[tuple[TP, Record]]:
        """What was committed since the last call: each partition in its order, partitions woven by timestamp."""
        logs: list[list[tuple[TP, Record]]] = []
        for topic in topics:
            info = self._cluster.topic_info(topic)
            for partition in range(info.partitions if info is not None else 0):
                tp = TP(topic, partition)
                fetched, _ = self._cluster.log(tp).read(
                    self._next.get(tp, 0), committed=True, max_bytes=1 << 62, at_least_one=True
                )
                self._next[tp] = fetched.next_offset
                if fetched.records:
                    logs.append([(tp, record) for record in fetched.records])
        return _woven(logs)


def _woven(logs: list[list[tuple[TP, Record]]]) -> list[tuple[TP, Record]]:
    if len(logs) == 1:
        return logs[0]
    woven: list[tuple[TP, Record]] = []
    heads = [(log[0][1].timestamp, number, 0) for number, log in enumerate(logs)]
    heapq.heapify(heads)
    while heads:
        _, number, index = heads[0]
        log = logs[number]
        woven.append(log[index])
        if index + 1 < len(log):
            heapq.heapreplace(heads, (log[index + 1][1].timestamp, number, index + 1))
        else:
            heapq.heappop(heads)
    return woven
