"""Ownership: what a worker holds of its app now. Taking over, revoking and failed commits change it (rule 14)."""

from __future__ import annotations

from dataclasses import dataclass, field

from semel.port import Membership
from semel.stages.commit.transaction import Writer
from semel.state.task import Task, TaskState


@dataclass(slots=True)
class Ownership:
    """`tasks`: by partition number. `membership`: of the group, as it was when they were assigned; None where nothing is.
    `writer`: None where one is to be made. `open_for_work`: events may be taken, and epochs committed."""

    tasks: dict[int, Task] = field(default_factory=dict[int, Task])
    membership: Membership | None = None
    writer: Writer | None = None
    open_for_work: bool = False

    @property
    def touched(self) -> list[Task]:
        """Tasks of which something is done that is not sealed."""
        return [task for task in self.tasks.values() if task.touched]

    @property
    def running(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.state is TaskState.RUNNING]
