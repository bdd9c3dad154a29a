"""Heartbeat thread: keeps the worker's place in the group while code holds the loop (decision "heartbeats of a held loop").

While the loop runs, it does nothing and has no connection. It decides nothing either: a rebalance, a place that the group
refuses, or that the loop was about to give up, is left for the loop to act on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from semel.broker.answers import Answer, answer_of
from semel.codes import Code
from semel.port import Broker, Clock, Membership, RpcError, RpcLost

log = logging.getLogger("semel.group")

# Of a session, how long the loop may be held before the thread begins: there is time left for a connection, and for another.
BEGINS = 1 / 4
LOOKS = 4
# A process that was stopped as a whole sees its loop late when it goes on; one that is held is seen so, this often in a row.
SEEN = 2


class HeartbeatThread:
    """`start` it on the loop that it stands in for. `connect`: makes a connection, on a loop of the thread's own. `to_keep`: the
    membership that the loop would heartbeat for; None while there is none. `kept`: told of each answer, and when it asked.

    Past `max_block_ms` it stops: a worker that hangs for good loses its partitions when the session after that is over.
    """

    def __init__(
        self,
        connect: Callable[[], Broker],
        clock: Clock,
        *,
        to_keep: Callable[[], Membership | None],
        kept: Callable[[Membership, float], None],
        session_timeout_ms: int,
        max_block_ms: int,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._to_keep = to_keep
        self._kept = kept
        self._begins_s = session_timeout_ms / 1000 * BEGINS
        self._look_s = self._begins_s / LOOKS
        self._interval_s = min(session_timeout_ms / 10, 1000) / 1000
        self._most_s = max_block_ms / 1000
        self._over = threading.Event()
        self._beaten = 0.0
        self._seen = 0
        # What the group does not take any more; of a loop that is held for too long.
        self._refused: Membership | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if not self._most_s:
            return
        self._beat()
        threading.Thread(target=self._watch, name="semel heartbeats", daemon=True).start()

    def stop(self) -> None:
        """It ends soon; that is not waited for."""
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()

    # -- on the loop

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(self._look_s, self._beat)

    # -- in the thread

    def _watch(self) -> None:
        while not self._over.wait(self._look_s):
            held_s = time.monotonic() - self._beaten
            self._seen = self._seen + 1 if held_s >= self._begins_s else 0
            membership = self._to_keep()
            if self._seen < SEEN or membership is None or membership is self._refused or held_s >= self._most_s:
                continue
            try:
                asyncio.run(self._stand_in(membership))
            except Exception as exc:
                # Whatever it is, the loop's own heartbeats go on when it does.
                log.warning("no heartbeat can be sent while the event loop is held: %r", exc)
                self._over.wait(self._interval_s)

    async def _stand_in(self, membership: Membership) -> None:
        """Until the loop runs again, or this is not to be kept any more."""
        log.info(
            "the event loop is held; a thread sends the heartbeats of generation %d meanwhile", membership.generation
        )
        broker, last_error = self._connect(), ""
        try:
            while self._stands_in(membership):
                asked_at = self._clock.monotonic()
                try:
                    await broker.heartbeat(membership)
                except (RpcError, RpcLost) as exc:
                    if str(exc) != last_error:
                        last_error = str(exc)
                        log.info("heartbeat while the event loop is held: %s", exc)
                    if isinstance(exc, RpcLost):
                        pass
                    elif exc.code == Code.REBALANCE_IN_PROGRESS:
                        # It waits for the loop to join, and throws out who is silent before that.
                        self._kept(membership, asked_at)
                    elif answer_of(exc) not in (Answer.RETRY, Answer.WAIT):
                        # Another generation, or none: the loop hears the same, and does what is to be done.
                        self._refused = membership
                        return
                else:
                    self._kept(membership, asked_at)
                await asyncio.sleep(self._interval_s)
        finally:
            with contextlib.suppress(RpcError, RpcLost, OSError):
                await broker.close()

    def _stands_in(self, membership: Membership) -> bool:
        held_s = time.monotonic() - self._beaten
        if self._over.is_set() or held_s < self._begins_s or self._to_keep() is not membership:
            return False
        if held_s < self._most_s:
            return True
        log.warning(
            "the event loop has been held for over max_block_ms (%.0f s): no more heartbeats are sent until it runs again, so "
            "that the group gives its partitions to other workers when the session is over", self._most_s,
        )  # fmt: skip
        return False
