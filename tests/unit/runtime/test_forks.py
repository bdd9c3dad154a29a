"""What an agent's code forks and does not end, ends where it would come back into the worker."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, json, logging, os, sys
from dataclasses import dataclass
from semel import Pipeline, Retry, Topic
from semel.testing import PipelineTester

logging.basicConfig(level=logging.WARNING)

@dataclass
class Event:
    how: str

@dataclass
class Result:
    how: str
    code: int

def forks(event):
    if pid := os.fork():
        return Result(event.how, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    match event.how:
        case "exits": sys.exit()
        case "exits with 3": sys.exit(3)
        case "says why": sys.exit("no more")
        case "raises": raise ValueError("in the child")
    return None

async def coroutine(event):
    result = forks(event)
    if event.how == "waits":
        await asyncio.sleep(0)
    return result

async def stream(events):
    async for event in events:
        result = forks(event)
        if event.how == "waits":
            await asyncio.sleep(0)
        if result is not None:
            yield result

async def batches(events):
    async for batch in events.batches():
        for event in batch:
            if (result := forks(event)) is not None:
                yield result

agent = {"function": forks, "thread": forks}.get(sys.argv[1]) or globals()[sys.argv[1]]
options = {"threads": 1} if sys.argv[1] == "thread" else {}
pipeline = Pipeline("forking", source=Topic("s", key=str, value=Event), agent=agent, sink=Topic("r", key=str, value=Result),
                    retry=Retry(1), **options)
with PipelineTester(pipeline) as tester:
    for how in ("exits", "exits with 3", "says why", "raises", "returns", "waits"):
        tester.send(Event(how), key="k")
    said = {output.value.how: output.value.code for output in tester.outputs()}
    print(json.dumps([said, len(tester.dead_letters())]))
"""


@pytest.mark.parametrize("style", ["function", "thread", "coroutine", "stream", "batches"])
def test_a_process_that_a_handler_forks_ends_where_the_handler_does(style: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, style],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, ran.stderr
    # Of the children nothing stands there.
    [line] = ran.stdout.splitlines()
    codes = {"exits": 0, "exits with 3": 3, "says why": 1, "raises": 1, "returns": 0, "waits": 0}
    assert json.loads(line) == [codes, 0]
    assert ran.stderr.count("came back from it, and ends here") == 3
    assert "no more" in ran.stderr and "ValueError: in the child" in ran.stderr
