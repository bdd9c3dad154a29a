"""One seed is one course of events: in this process, and in another that hashes otherwise."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.simulation.systematic import parsed
from tests.simulation.work import run_seed, trace, try_case

SEEDS = (3, 22)
CASE = "pair/w1#1@commit.after_produce:2/w1#3@restore.end:1"
PROGRAM = """
import logging
logging.disable()
from tests.simulation.systematic import parsed
from tests.simulation.work import run_seed, trace, try_case
for seed in {seeds}:
    print(trace(run_seed(seed, real_share=0.0).history))
print(trace(try_case(parsed({case!r})).outcome.history))
"""


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def traces() -> list[str]:
    seeds = [trace(run_seed(seed, real_share=0.0).history) for seed in SEEDS]
    return [*seeds, trace(try_case(parsed(CASE)).outcome.history)]


def test_a_seed_repeats_its_run_to_the_last_byte_and_moment_in_any_process() -> None:
    here = traces()
    assert len(set(here)) == len(here)
    assert traces() == here
    others: list[subprocess.Popen[str]] = []
    for hash_seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        program = PROGRAM.format(seeds=SEEDS, case=CASE)
        others.append(
            subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        )
    for other in others:
        said, _ = other.communicate(timeout=120)
        assert said.split() == here


def test_a_run_on_rocksdb_takes_the_same_course_as_on_its_model() -> None:
    case = parsed("restore/w1#2@restore.chunk:2")
    assert trace(try_case(case).outcome.history) == trace(try_case(case, real=True).outcome.history)
