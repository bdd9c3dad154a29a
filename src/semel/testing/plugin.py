"""The pytest plugin: a fixture that makes testers, and what came of their events beside a test that failed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from semel.testing.tester import PipelineTester

_testers: pytest.StashKey[list[PipelineTester]] = pytest.StashKey()
_failed: pytest.StashKey[bool] = pytest.StashKey()


@pytest.fixture
def tester_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., PipelineTester]]:
    """`tester_of(pipeline, **options)`: a `PipelineTester`, closed when the test is over. Options as for the class."""
    from semel.testing.tester import PipelineTester

    node: pytest.Item = request.node
    made = node.stash.setdefault(_testers, [])

    def make(pipeline: Any, **options: Any) -> PipelineTester:
        tester = PipelineTester(pipeline, **options)
        made.append(tester)
        return tester

    yield make
    for tester in made:
        tester.close(failed=node.stash.get(_failed, False))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        item.stash[_failed] = True
        made: list[PipelineTester] | None = item.stash.get(_testers, None)
        report.sections += [("semel tester", tester.report()) for tester in made or ()]
    return report
