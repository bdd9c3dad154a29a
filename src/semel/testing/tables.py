"""The tables of a pipeline under test, read-only: committed rows, as the web views show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from semel.plan import TablePlan
from semel.state.task import Task
from semel.table import Table
from semel.testing.errors import PipelineTesterError, unknown

ReadTasks = Callable[[], list[Task]]


class TableView(Mapping[Any, Any]):
    """A table as a mapping of its committed rows, over all partitions; rows of a `merge=` table are combined.

    A row that is not there raises KeyError: `default=` is what an agent sees, and makes no row.
    """

    def __init__(self, plan: TablePlan, tasks: ReadTasks) -> None:
        self._plan = plan
        self._tasks = tasks

    def __getitem__(self, key: Any) -> Any:
        try:
            raw = self._plan.key.encode(key)
        except TypeError as exc:
            raise PipelineTesterError(f"table {self._plan.name!r}: {exc}; its keys are {self._plan.key.name}") from exc
        stored = [task.tables[self._plan.name].committed(raw) for task in self._tasks()]
        parts = [part for part in stored if part is not None]
        if not parts:
            raise KeyError(key)
        return self._whole(key, parts)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows())

    def __len__(self) -> int:
        return len(self._rows())

    def __contains__(self, key: object) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __repr__(self) -> str:
        return f"TableView({self._plan.name!r}, {self._rows()!r})"

    def __eq__(self, other: object) -> bool:
        return self._rows() == dict(other.items()) if isinstance(other, Mapping) else NotImplemented  # pyright: ignore[reportUnknownArgumentType,reportUnknownMemberType]

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def keys(self) -> Any:
        return self._rows().keys()

    def values(self) -> Any:
        return self._rows().values()

    def items(self) -> Any:
        return self._rows().items()

    def _rows(self) -> dict[Any, Any]:
        """All rows, by key as its bytes are ordered."""
        parts: dict[bytes, list[bytes]] = {}
        for task in self._tasks():
            for raw, value in task.tables[self._plan.name].scan():
                parts.setdefault(raw, []).append(value)
        decode = self._plan.key.decode
        return {key: self._whole(key, parts[raw]) for key, raw in ((decode(raw), raw) for raw in sorted(parts))}

    def _whole(self, key: Any, parts: list[bytes]) -> Any:
        decode, merge = self._plan.value.decode, self._plan.merge
        whole = decode(parts[0])
        if len(parts) > 1 and merge is None:
            raise PipelineTesterError(
                f"table {self._plan.name!r} holds the row {key!r} in {len(parts)} partitions, and has no merge="
            )
        for part in parts[1:]:
            assert merge is not None
            whole = merge(whole, decode(part))
        return whole


class TableViews(Mapping[str, TableView]):
    """The tables by name; a `Table` will do for its name."""

    def __init__(self, plans: list[TablePlan], tasks: ReadTasks) -> None:
        self._views = {plan.name: TableView(plan, tasks) for plan in plans}

    def __getitem__(self, name: str | Table) -> TableView:
        name = name.name if isinstance(name, Table) else name
        if name not in self._views:
            raise unknown("table", name, self._views)
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"TableViews({list(self._views)})"
