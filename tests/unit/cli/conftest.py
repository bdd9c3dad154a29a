import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.web.workers import group, keyed, start, table_data

__all__ = ["group", "keyed", "start", "table_data"]

SEMEL = Path(sys.executable).with_name("semel")


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def semel(tmp_path):
    """`await semel("tables", "get", ...)`: the installed command, in an empty directory, beside the running loop."""

    async def run(*arguments: str, env: dict[str, str] | None = None, cwd: Path = tmp_path) -> Ran:
        bare = {name: value for name, value in os.environ.items() if not name.startswith("SEMEL_")}
        process = await asyncio.create_subprocess_exec(
            SEMEL,
            *arguments,
            cwd=cwd,
            env=bare | (env or {}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
        assert "Traceback" not in err.decode()
        return Ran(process.returncode, out.decode(), err.decode())

    return run
