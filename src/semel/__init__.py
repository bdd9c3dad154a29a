"""semel: stream pipelines on Faust and Kafka in which every event takes effect exactly once per key.

The public names. `import semel as faust` works: names semel does not define are Faust's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semel.dedup import Dedup as Dedup
    from semel.dedup import content_hash as content_hash
    from semel.dedup import header as header
    from semel.effects.decisions import NOT_DONE as NOT_DONE
    from semel.effects.inbox import Inbox as Inbox
    from semel.effects.inbox import once as once
    from semel.errors import Reject as Reject
    from semel.errors import SemelError as SemelError
    from semel.event import Event as Event
    from semel.event import current_event as current_event
    from semel.faust_.app import App as App
    from semel.output import Output as Output
    from semel.pipeline import Pipeline as Pipeline
    from semel.rate_limit import RateLimit as RateLimit
    from semel.retry import Retry as Retry
    from semel.stages.agent.stream import Batch as Batch
    from semel.table import Table as Table
    from semel.topic import Topic as Topic

__version__ = "0.1.0"

_HOMES = {
    "App": "semel.faust_.app",
    "Batch": "semel.stages.agent.stream",
    "Dedup": "semel.dedup",
    "Event": "semel.event",
    "Inbox": "semel.effects.inbox",
    "NOT_DONE": "semel.effects.decisions",
    "Output": "semel.output",
    "Pipeline": "semel.pipeline",
    "RateLimit": "semel.rate_limit",
    "Reject": "semel.errors",
    "Retry": "semel.retry",
    "SemelError": "semel.errors",
    "Table": "semel.table",
    "Topic": "semel.topic",
    "content_hash": "semel.dedup",
    "current_event": "semel.event",
    "header": "semel.dedup",
    "once": "semel.effects.inbox",
}
__all__ = [
    "NOT_DONE",
    "App",
    "Batch",
    "Dedup",
    "Event",
    "Inbox",
    "Output",
    "Pipeline",
    "RateLimit",
    "Reject",
    "Retry",
    "SemelError",
    "Table",
    "Topic",
    "__version__",
    "content_hash",
    "current_event",
    "header",
    "once",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Names come in when they are asked for: a command that only prints its help need not load Faust.
    import importlib

    home = _HOMES.get(name)
    if home is not None:
        return getattr(importlib.import_module(home), name)
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return importlib.import_module(f"semel.{name}")
    except ModuleNotFoundError as exc:
        if exc.name != f"semel.{name}":
            raise
    faust = importlib.import_module("faust")
    try:
        return getattr(faust, name)
    except AttributeError:
        raise AttributeError(f"semel has no {name!r}, and faust has none either") from None
