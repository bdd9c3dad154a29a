"""What the broker tests share: ledgers that clean up after themselves, and figures shown at the end of the run."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from semel.local.kafka import LocalKafka
from tests.broker.figures import Figures
from tests.broker.ledger import Ledger

HERE = Path(__file__).parent
FIGURES = pytest.StashKey[Figures]()


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Figures]:
    found = request.config.stash.setdefault(FIGURES, Figures())
    yield found
    found.write(tmp_path_factory.mktemp("figures") / "figures.json")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Killed processes and real clocks on a busy machine: one second look each, shown as a rerun in the closing line.

    Not for a broken law: what is lost or doubled once is lost or doubled.
    """
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.flaky(reruns=1, rerun_except="LawBroken"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(FIGURES, None)
    if found is not None and found.values:
        terminalreporter.section("figures")
        for name, value in sorted(found.values.items()):
            terminalreporter.write_line(f"{name:<90} {value:>10}")


@pytest.fixture
def seed() -> int:
    """Of every random choice of a test; `SEED=` in the environment repeats one."""
    chosen = int(os.environ.get("SEED") or secrets.randbelow(10**6))
    logging.getLogger("tests.broker").warning("SEED=%d", chosen)
    return chosen


MakeLedger = Callable[..., Awaitable[Ledger]]


@pytest.fixture
async def make_ledger(topic_prefix: str, tmp_path: Path) -> AsyncIterator[MakeLedger]:
    """`await make_ledger(kafka, ...)`: a ledger with its source topic, its workers stopped at the end."""
    made: list[Ledger] = []

    async def make(kafka: LocalKafka, *, name: str = "", **options: object) -> Ledger:
        directory = tmp_path / f"ledger-{len(made)}"
        directory.mkdir()
        ledger = Ledger(kafka.bootstrap, name or topic_prefix, directory, **options)  # type: ignore[arg-type]
        made.append(ledger)
        return await ledger.create()

    yield make
    for ledger in made:
        await ledger.close()


@pytest.fixture
async def ledger(any_kafka: LocalKafka, make_ledger: MakeLedger) -> Ledger:
    """A ledger of four partitions, once on each Kafka version."""
    return await make_ledger(any_kafka)


@pytest.fixture
async def ledger41(kafka: LocalKafka, make_ledger: MakeLedger) -> Ledger:
    """A ledger of four partitions on Kafka 4.1."""
    return await make_ledger(kafka)
