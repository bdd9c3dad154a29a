"""Metrics: the engine's numbers for Prometheus, read when asked for; nothing is counted on the hot path for them.

Names follow the flow: source, dedup, agent, sink, commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from semel.stages.fetch.lag import Histogram
from semel.state.task import TaskState

if TYPE_CHECKING:
    from semel.worker.engine import Engine

_RECORDS = {
    "in": ("semel_source_records", "Source records done, whatever became of them"),
    "out": ("semel_sink_records", "Results written to sink topics"),
    "filtered": ("semel_agent_filtered", "Events for which the agent gave no result to be sent with them"),
    "duplicates": ("semel_dedup_duplicates", "Events dropped as duplicates"),
    "replayed": ("semel_dedup_replayed", "Records met again at their own position and skipped"),
    "conflicts": ("semel_dedup_conflicts", "Events with a known id and another payload"),
    "dropped": ("semel_source_dropped", "Events dropped by a rule that says drop"),
    "dead": ("semel_dead_letters", "Records sent to the dead letters"),
}
_ENGINE = {
    "commits": ("semel_commit_epochs", "Epochs committed"),
    "aborts": ("semel_commit_aborts", "Epochs aborted"),
    "unknown": ("semel_commit_unknown", "Epochs whose commit was not answered"),
    "fences": ("semel_commit_fences", "Times the writer was fenced"),
    "rebalances": ("semel_group_assignments", "Assignments received"),
    "recoveries": ("semel_commit_recoveries", "Times the engine started over after a failed commit"),
    "left_out": (
        "semel_agent_left_out",
        "Events that took longer than handler_timeout_ms; epochs are committed without them",
    ),
    "timed_out": (
        "semel_agent_timed_out",
        "Attempts that took longer than their pipeline's timeout, and were cancelled",
    ),
    "trims": ("semel_dedup_trims", "Times expired marks were deleted from the marks changelog"),
    "rebuilds": ("semel_store_rebuilds", "Times the local copy of the state was damaged and made anew"),
}


class EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        engine = self._engine
        app = engine.app
        for count, (name, text) in _RECORDS.items():
            family = CounterMetricFamily(name, text, labels=["pipeline", "partition"])
            for task in engine.tasks.values():
                family.add_metric([app, str(task.partition)], task.committed.counts.get(count, 0))
            yield family
        for stat, (name, text) in _ENGINE.items():
            family = CounterMetricFamily(name, text, labels=["pipeline"])
            family.add_metric([app], engine.stats[stat])
            yield family
        returned = CounterMetricFamily("semel_agent_returned", "Events, or batches, done because the agent's code returned",
                                       labels=["pipeline", "agent"])  # fmt: skip
        for agent in engine.agents:
            returned.add_metric([app, agent.plan.name], agent.returned)
        yield returned
        parked = GaugeMetricFamily("semel_agent_parked_events", "Events set aside for another attempt, and those of their keys",
                                   labels=["pipeline", "partition"])  # fmt: skip
        for task in engine.tasks.values():
            parked.add_metric([app, str(task.partition)], task.parked_events)
        yield parked
        held = GaugeMetricFamily("semel_agent_held_keys", "Keys whose later events wait for what becomes of a dead letter",
                                 labels=["pipeline", "partition"])  # fmt: skip
        for task in engine.tasks.values():
            held.add_metric([app, str(task.partition)], task.held_keys)
        yield held
        pending = GaugeMetricFamily("semel_timers_pending", "Outputs that are still to be sent at their time",
                                    labels=["pipeline", "partition"])  # fmt: skip
        sent = CounterMetricFamily("semel_timers_sent", "Outputs that were sent when their time had come",
                                   labels=["pipeline", "partition"])  # fmt: skip
        for task in engine.tasks.values():
            pending.add_metric([app, str(task.partition)], task.committed.timers)
            sent.add_metric([app, str(task.partition)], sum(task.committed.sent_later.values()))
        yield pending
        yield sent
        yield _histogram("semel_timers_lateness_seconds", "From when an output was due to its commit", app,
                         engine.timers.lateness)  # fmt: skip
        halted = GaugeMetricFamily("semel_agent_halted", "1 where its events fail one like the other and only probes are taken",
                                   labels=["pipeline", "agent"])  # fmt: skip
        for agent in engine.agents:
            halted.add_metric([app, agent.plan.name], agent.halted is not None)
        yield halted
        limit = GaugeMetricFamily("semel_agent_rate_limit", "Events a second that its rate limit leaves to this worker",
                                  labels=["pipeline", "agent"])  # fmt: skip
        limited = CounterMetricFamily("semel_agent_rate_limited_seconds", "For how long events waited for the rate limit alone",
                                      labels=["pipeline", "agent"])  # fmt: skip
        for agent in engine.limited():
            limit.add_metric([app, agent.agent], agent.here_per_second)
            limited.add_metric([app, agent.agent], agent.limited_s)
        yield limit
        yield limited
        budget = GaugeMetricFamily("semel_memory_budget_bytes", "What grows with what comes in may take",
                                   labels=["pipeline", "kind"])  # fmt: skip
        for kind, size in engine.budget_bytes().items():
            budget.add_metric([app, kind], size)
        yield budget
        held = GaugeMetricFamily("semel_memory_held_bytes", "What of the budget is in use", labels=["pipeline", "kind"])
        for kind, size in engine.held_bytes().items():
            held.add_metric([app, kind], size)
        yield held
        lag = GaugeMetricFamily("semel_source_lag_records", "Records between position and log end",
                                labels=["pipeline", "topic", "partition"])  # fmt: skip
        for (topic, partition), behind in engine.lag().items():
            if behind is not None:
                lag.add_metric([app, topic, str(partition)], behind)
        yield lag
        vain = CounterMetricFamily("semel_source_fetch_errors", "Times a partition was asked for in vain",
                                   labels=["pipeline", "topic", "partition", "error"])  # fmt: skip
        for (tp, error), count in engine.troubles.counts.items():
            vain.add_metric([app, tp.topic, str(tp.partition), error], count)
        yield vain
        running = GaugeMetricFamily("semel_task_running", "1 running, 0 restoring", labels=["pipeline", "partition"])
        left = GaugeMetricFamily("semel_restore_left_records", "Changelog records still to be read",
                                 labels=["pipeline", "partition"])  # fmt: skip
        for task in engine.tasks.values():
            labels = [app, str(task.partition)]
            running.add_metric(labels, 1 if task.state is TaskState.RUNNING else 0)
            left.add_metric(labels, max(0, task.to_restore - task.restored))
        yield running
        yield left
        told = CounterMetricFamily("semel_broker_throttles", "Answers in which a broker asked to wait before the next request",
                                   labels=["pipeline", "request"])  # fmt: skip
        waited = CounterMetricFamily("semel_broker_throttled_seconds", "For how long brokers asked to wait",
                                     labels=["pipeline", "request"])  # fmt: skip
        throttles = engine.broker.throttles
        for request, count in throttles.answers.items():
            told.add_metric([app, request], count)
            waited.add_metric([app, request], throttles.seconds[request])
        yield told
        yield waited
        yield _histogram("semel_commit_seconds", "From seal to committed", app, engine.commit_histogram)


def _histogram(name: str, text: str, app: str, histogram: Histogram) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["pipeline"])
    totals = list(accumulate(histogram.counts))
    bounds = [*map(str, histogram.bounds), "+Inf"]
    family.add_metric([app], list(zip(bounds, totals, strict=True)), histogram.sum)
    return family


def exposition(engine: Engine) -> bytes:
    """The text format, made anew."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    return generate_latest(registry)
