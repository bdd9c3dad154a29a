"""Workers for the views' tests: real servers on loopback, over rows held in plain dicts."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from yarl import URL

from semel.config import Settings
from semel.errors import DecodeError
from semel.web.scan import row_size
from semel.web.server import WebServer
from semel.web.view import NotOwned, Owner, Page, Restoring, TableInfo, TableRow


@dataclass
class TableData:
    """`rows[partition][key]`; `read` turns a URL's text into a key."""

    rows: dict[int, dict[Any, Any]]
    read: Callable[[str], Any] = str
    keyed: bool = True
    merged: bool = False


@dataclass
class Group:
    """What the consumer group knows: who holds which partition. Workers are named by their instance."""

    tables: dict[str, TableData]
    partitions: int
    urls: dict[str, str] = field(default_factory=dict)
    holder: dict[int, str] = field(default_factory=dict)
    restoring: dict[int, Restoring] = field(default_factory=dict)
    marks: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


def raw_of(key: Any) -> bytes:
    return key.encode("utf-8", "surrogatepass") if isinstance(key, str) else json.dumps(key).encode()


class HeldView:
    """A WorkerView over the group's dicts, showing only the partitions this worker holds."""

    app_id = "shop"

    def __init__(self, group: Group, instance: str) -> None:
        self.group = group
        self.instance = instance
        self.ready = True
        self.stale_owners: list[list[Owner]] = []
        self.scans = 0

    def held(self) -> list[int]:
        return [p for p, holder in self.group.holder.items() if holder == self.instance]

    def tables(self):
        return [
            TableInfo(name, "shop", data.keyed, data.merged, len(self.held()), data.read in (int, float))
            for name, data in self.group.tables.items()
        ]

    def key(self, table, text):
        try:
            return self.group.tables[table].read(text)
        except ValueError as wrong:
            raise DecodeError(f"{text!r} does not fit: {wrong}") from wrong

    def partition_of(self, table, key):
        data = self.group.tables[table]
        return sum(raw_of(key)) % self.group.partitions if data.keyed and not data.merged else None

    def owners(self):
        if self.stale_owners:
            return self.stale_owners.pop(0)
        return [
            Owner(p, None if holder == self.instance else self.group.urls[holder])
            for p, holder in sorted(self.group.holder.items())
        ]

    def _check(self, partition):
        if self.group.holder.get(partition) != self.instance:
            raise NotOwned
        if partition in self.group.restoring:
            raise self.group.restoring[partition]

    def get(self, table, key, partition):
        self._check(partition)
        rows = self.group.tables[table].rows.get(partition, {})
        return self._row(table, key, rows[key], partition) if key in rows else None

    def _row(self, table, key, value, partition):
        if self.group.tables[table].merged:
            value = json.dumps(value).encode()
        return TableRow(key, value, partition, raw_of(key))

    def merge(self, table, stored):
        return sum(map(json.loads, stored))

    def count(self, table, partition, after, limit):
        page = self.scan(table, partition, after=after, limit=limit)
        return len(page.rows), page.next

    def scan(self, table, partition, *, prefix=None, start=None, end=None, after=None, limit=100, bytes_max=1 << 18):
        self._check(partition)
        self.scans += 1
        data = self.group.tables[table]
        low = None if start is None else raw_of(self.key(table, start))
        high = None if end is None else raw_of(self.key(table, end))
        rows = [
            self._row(table, key, value, partition)
            for key, value in sorted(data.rows.get(partition, {}).items(), key=lambda row: raw_of(row[0]))
            if (prefix is None or str(key).startswith(prefix))
            and (low is None or raw_of(key) >= low)
            and (high is None or raw_of(key) < high)
            and (after is None or raw_of(key) > after)
        ]
        fit = next((n for n in range(1, len(rows)) if sum(map(row_size, rows[:n])) >= bytes_max), len(rows))
        limit = min(limit, fit)
        return Page(tuple(rows[:limit]), rows[limit - 1].raw if len(rows) > limit else None)

    def pipelines(self):
        return [{"name": "shop", "instance": self.instance}]

    def dedup(self, pipeline, written):
        if pipeline != "shop":
            raise KeyError(f"there is no pipeline {pipeline!r} here")
        found = self.group.marks.get(self.instance, {}).get("/".join(written))
        return [] if found is None else [found]

    def readiness(self):
        return self.ready, {"partitions": len(self.held())}

    def liveness(self):
        return True, {"loop": "turning"}

    def metrics(self):
        return b"semel_events_total 1.0\n"


@dataclass
class Answer:
    status: int
    text: str
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Worker:
    """A started server, and requests to it exactly as written."""

    def __init__(self, view: HeldView, server: WebServer, client: aiohttp.ClientSession) -> None:
        self.view = view
        self.server = server
        self._client = client

    async def get(self, path: str, **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._client.get(URL(self.server.url + path, encoded=True), headers=sent) as response:
            return Answer(response.status, await response.text(), response.headers)

    async def pages(self, path: str) -> list[list[dict[str, Any]]]:
        """The rows of every page from `path` on."""
        found = []
        joint = "&" if "?" in path else "?"
        token = ""
        while True:
            answer = await self.get(path + token)
            assert answer.status == 200, answer.text
            found.append(answer.json["rows"])
            if answer.json["next"] is None:
                return found
            token = f"{joint}page={answer.json['next']}"


@pytest.fixture
async def start():
    """`await start(group, "a", "b")`: workers by name, partitions dealt to them in turn."""
    running: list[WebServer] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:

        async def starter(group: Group, *instances: str, **settings: Any) -> list[Worker]:
            workers = []
            for name in instances:
                view = HeldView(group, name)
                server = WebServer(view, Settings(web_port=0, **settings))
                await server.start()
                running.append(server)
                group.urls[name] = server.url
                workers.append(Worker(view, server, client))
            for partition in range(group.partitions):
                group.holder.setdefault(partition, instances[partition % len(instances)])
            return workers

        yield starter
        await asyncio.gather(*(server.stop() for server in running))


@pytest.fixture
def group():
    """`group(tables, partitions=4)`; tables as `name=TableData`."""

    def make(partitions: int = 4, **tables: TableData) -> Group:
        return Group(tables, partitions)

    return make


@pytest.fixture
def keyed():
    """A table whose rows stand in the partition their key hashes to."""

    def make(rows: dict[Any, Any], partitions: int = 4, read: Callable[[str], Any] = str) -> TableData:
        held: dict[int, dict[Any, Any]] = {p: {} for p in range(partitions)}
        for key, value in rows.items():
            held[sum(raw_of(key)) % partitions][key] = value
        return TableData(held, read)

    return make


@pytest.fixture
def table_data():
    return TableData
