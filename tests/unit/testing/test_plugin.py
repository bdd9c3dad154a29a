"""The pytest plugin, as a project sees it that has semel installed and nothing configured."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

PIPELINE = """
    from semel import Pipeline, Topic
    from semel.testing import PipelineTester
    import pytest

    def double(event):
        if event["n"] < 0:
            raise ValueError("below zero")
        return {"n": event["n"] * 2}

    pipeline = Pipeline("doubles", source=Topic("numbers"), agent=double, sink=Topic("doubled"))
"""


def run(pytester: pytest.Pytester, tests: str) -> pytest.RunResult:
    pytester.makepyfile(PIPELINE + tests)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:asyncio")


def test_the_fixture_is_there_without_any_configuration(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
    def test_doubling(tester_of):
        tester = tester_of(pipeline, partitions=1)
        tester.send({"n": 21})
        assert [output.value for output in tester.outputs()] == [{"n": 42}]
    """,
    )
    result.assert_outcomes(passed=1)


def test_a_failed_test_shows_seed_and_dead_letters(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
    def test_doubling(tester_of):
        tester = tester_of(pipeline, seed=17)
        tester.send({"n": -1}, partition=2)
        assert tester.outputs()
    """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*semel tester*",
            "PipelineTester('doubles', seed=17): 1 event sent, 0 results, 1 dead letter",
            "*dead letter numbers?2?@0 (failed, attempts: 5): ValueError: below zero",
        ]
    )


def test_a_failed_with_block_notes_the_same(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
    def test_doubling():
        with PipelineTester(pipeline, seed=17) as tester:
            tester.send({"n": -1})
            assert tester.outputs()
    """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*PipelineTester('doubles', seed=17): 1 event sent, 0 results, 1 dead letter"])


def test_a_crash_that_never_happened_fails_the_test_that_asked_for_it(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
    def test_doubling(tester_of):
        tester = tester_of(pipeline)
        tester.crash(at="commit.after_produce")
    """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*crash(at='commit.after_produce', nth=1) never happened*"])


def test_a_test_that_failed_is_not_blamed_for_its_crash_too(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
    def test_doubling(tester_of):
        tester_of(pipeline).crash(at="commit.after_produce")
        assert False
    """,
    )
    result.assert_outcomes(failed=1)


def test_the_plugin_costs_a_run_nothing_that_does_not_use_it() -> None:
    loaded = "import semel.testing.plugin, sys; print(sorted(m for m in sys.modules if m.startswith('semel')))"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['semel', 'semel.testing', 'semel.testing.plugin']"
