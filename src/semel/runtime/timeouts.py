"""The order of the timeouts (protocol rule 13): pure, from those that somebody set to all six."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from semel.errors import ConfigError


class Below(NamedTuple):
    """`low` stays below `high`, or may equal it. `share` of `high` is what `low` gets where its default is too much."""

    low: str
    high: str
    share: float
    or_equal: bool = False


ORDER = (
    Below("rpc_timeout_ms", "commit_timeout_ms", 0.4),
    Below("commit_timeout_ms", "revoke_timeout_ms", 0.7),
    Below("revoke_timeout_ms", "rebalance_timeout_ms", 0.7),
    Below("commit_timeout_ms", "transaction_timeout_ms", 0.5),
    Below("transaction_timeout_ms", "session_timeout_ms", 1.0, or_equal=True),
)

# Decided in this order: what the group sees first, what is bounded by it after.
TIMEOUTS: dict[str, int] = {
    "session_timeout_ms": 10_000,
    "transaction_timeout_ms": 10_000,
    "rebalance_timeout_ms": 60_000,
    "commit_timeout_ms": 5_000,
    "revoke_timeout_ms": 7_000,
    "rpc_timeout_ms": 2_000,
}


def derive_timeouts(given: Mapping[str, int]) -> dict[str, int]:
    """All six timeouts: those given as they are, the others their default, moved where the order asks for it.

    Raises `ConfigError` naming both settings where the given ones contradict each other.
    """
    _check_order({**given}, given)
    decided = {**given}
    for name, default in TIMEOUTS.items():
        if name in given:
            continue
        value = default
        if name in ("rpc_timeout_ms", "revoke_timeout_ms") and "commit_timeout_ms" not in given:
            # The three bound one exchange: a short session that shortens the commit shortens all of it.
            shrunk = min(1.0, decided["commit_timeout_ms"] / TIMEOUTS["commit_timeout_ms"])
            value = max(1, round(default * shrunk))
        ceilings = [_ceiling(decided[high], link) for high, link in _links(name, up=True) if high in decided]
        floors = [_floor(decided[low], link) for low, link in _links(name, up=False) if low in decided]
        if ceilings:
            limit, preferred = min(ceilings)
            value = value if value <= limit else preferred
        if floors:
            least, preferred = max(floors)
            value = value if value >= least else preferred
            if ceilings and value > min(ceilings)[0]:
                value = (least + min(ceilings)[0]) // 2
        decided[name] = value
    _check_order(decided, given)
    return decided


def _links(name: str, *, up: bool) -> list[tuple[str, Below]]:
    """Everything above (or below) `name`, near or far, with the link from the lower to the higher of the two."""
    links: list[tuple[str, Below]] = []
    for step in ORDER:
        near, far = (step.low, step.high) if up else (step.high, step.low)
        if near != name:
            continue
        links.append((far, step))
        for other, rest in _links(far, up=up):
            low, high = (name, other) if up else (other, name)
            links.append((other, Below(low, high, step.share * rest.share, step.or_equal and rest.or_equal)))
    return links


def _ceiling(high: int, link: Below) -> tuple[int, int]:
    limit = high if link.or_equal else high - 1
    return limit, max(1, min(limit, round(high * link.share)))


def _floor(low: int, link: Below) -> tuple[int, int]:
    least = low if link.or_equal else low + 1
    return least, max(least, round(low / link.share))


def _check_order(values: Mapping[str, int], given: Mapping[str, int]) -> None:
    for low in values:
        for high, link in _links(low, up=True):
            if high not in values or values[low] < values[high] or (link.or_equal and values[low] == values[high]):
                continue
            relation = "at most" if link.or_equal else "below"
            if low not in given or high not in given:
                settings = ", ".join(f"{name} = {value}" for name, value in given.items())
                raise ConfigError(
                    f"{settings}: no room is left for {low} {relation} {high}; set larger or fewer of them"
                )
            raise ConfigError(
                f"{low} = {values[low]} must be {relation} {high} = {values[high]}: lower {low} or raise {high}, "
                "or leave one unset and its default follows the other"
            )
