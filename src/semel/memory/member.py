"""A member of a group, and what it waits for."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from semel.memory.refused import Refused
from semel.memory.timers import Timer
from semel.port import Joined

# A member whose first JoinGroup waits for a rebalance is kept this long, whatever its session timeout.
NEW_MEMBER_JOIN_S = 300.0

JoinFuture: TypeAlias = "asyncio.Future[Joined]"
SyncFuture: TypeAlias = "asyncio.Future[bytes]"


def refuse(future: asyncio.Future[Joined] | asyncio.Future[bytes] | None, code: int, detail: str) -> None:
    if future is not None and not future.done():
        future.set_exception(Refused(code, detail))
        future.exception()  # the client may be gone: nobody need collect it


class Member:
    __slots__ = (
        "assignment",
        "deadline",
        "instance_id",
        "joining",
        "member_id",
        "metadata",
        "new",
        "rebalance_s",
        "session",
        "session_s",
        "syncing",
    )

    def __init__(
        self, member_id: str, instance_id: str | None, metadata: bytes, session_s: float, rebalance_s: float
    ) -> None:
        self.member_id = member_id
        self.instance_id = instance_id
        self.metadata = metadata
        self.session_s = session_s
        self.rebalance_s = rebalance_s
        self.assignment = b""
        self.new = True
        # Set while the member waits, also when its client no longer does.
        self.joining: JoinFuture | None = None
        self.syncing: SyncFuture | None = None
        self.deadline = 0.0
        self.session: Timer | None = None
