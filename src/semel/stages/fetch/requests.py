"""Requests: what is asked of each leader at once, of the partitions that need records. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from semel.port import TP, FetchRequest

MAX_WAIT_MS = 250
# Where a compressed batch becomes many times as large, so little is asked for; a broker answers with a whole batch at least.
PARTITION_LEAST_BYTES = 16_384


class Wanted(NamedTuple):
    """A source partition that needs records: of which topic, from which offset on, and how much of it is asked for at most."""

    tp: TP
    topic_id: str
    offset: int
    ask_bytes: int


def requests(
    wanted: Iterable[Wanted], leaders: Mapping[TP, int], *, share_bytes: int, answer_bytes: int
) -> list[FetchRequest]:
    """One for each leader. `share_bytes`: how much of a partition may wait; `answer_bytes`: how large an answer may be.

    A request says one size for all its partitions: the smallest that is right for one of them. They are in the order given,
    which is that of the answer where not all fit.
    """
    by_leader: dict[int, list[Wanted]] = defaultdict(list)
    for want in wanted:
        if want.tp in leaders:
            by_leader[leaders[want.tp]].append(want)
    made: list[FetchRequest] = []
    for node, wants in by_leader.items():
        each = max(PARTITION_LEAST_BYTES, min(share_bytes, *(want.ask_bytes for want in wants)))
        offsets = {want.tp: want.offset for want in wants}
        ids = {want.tp.topic: want.topic_id for want in wants}
        most = min(each * len(wants), answer_bytes)
        made.append(FetchRequest(node, offsets, MAX_WAIT_MS, most, each, topic_ids=ids))
    return made
