"""What tests stand on: `PipelineTester` for pipelines; under it workers in memory, and virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semel.testing.crash import Crash as Crash
    from semel.testing.effect_report import EffectReport as EffectReport
    from semel.testing.effect_trials import EffectTrials as EffectTrials
    from semel.testing.errors import NotSettled as NotSettled
    from semel.testing.errors import PipelineTesterError as PipelineTesterError
    from semel.testing.errors import UnknownName as UnknownName
    from semel.testing.results import Counts as Counts
    from semel.testing.results import DeadLetter as DeadLetter
    from semel.testing.results import TopicRecord as TopicRecord
    from semel.testing.tables import TableView as TableView
    from semel.testing.tester import PipelineTester as PipelineTester

_HOMES = {
    "Counts": "results",
    "Crash": "crash",
    "DeadLetter": "results",
    "EffectReport": "effect_report",
    "EffectTrials": "effect_trials",
    "NotSettled": "errors",
    "PipelineTester": "tester",
    "PipelineTesterError": "errors",
    "TableView": "tables",
    "TopicRecord": "results",
    "UnknownName": "errors",
}
__all__ = [
    "Counts",
    "Crash",
    "DeadLetter",
    "EffectReport",
    "EffectTrials",
    "NotSettled",
    "PipelineTester",
    "PipelineTesterError",
    "TableView",
    "TopicRecord",
    "UnknownName",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # pytest loads our plugin in every run where semel is installed: it should not pay for the engine.
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"semel.testing.{_HOMES[name]}"), name)
