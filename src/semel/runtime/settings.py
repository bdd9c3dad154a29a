"""What the engine needs to know; `semel.config` makes it from the user's settings."""

from __future__ import annotations

from dataclasses import dataclass

# Younger position records are not compacted: a writer whose commit got no answer looks for its own.
COMPACTION_LAG_MS = 600_000


@dataclass(slots=True)
class EngineSettings:
    """Times in ms, named and defaulted as the contract's settings."""

    commit_interval_ms: int = 100
    session_timeout_ms: int = 10_000
    transaction_timeout_ms: int = 10_000
    rpc_timeout_ms: int = 2_000
    commit_timeout_ms: int = 5_000
    revoke_timeout_ms: int = 7_000
    rebalance_timeout_ms: int = 60_000
    handler_timeout_ms: int = 5_000
    drain_timeout_ms: int = 30_000
    carry_over_limit: int = 10_000
    # Events of a worker, and of one key, that may be parked: each takes up to 500 bytes of memory.
    parked_limit: int = 200_000
    parked_key_limit: int = 10_000
    # So many different events in a row that fail alike while none succeeds are no coincidence; 0: an agent never halts.
    halt_after: int = 10
    # A worker ends whose agent has halted for so long; 0: it stays, and tries an event now and then.
    halted_timeout_ms: int = 0
    memory_budget_bytes: int = 256 << 20
    replication_factor: int | None = None
    web_url: str = ""
    adopt: bool = False
    # Static members come back to their place; leaving would move their tasks at every restart.
    leave_on_stop: bool = False
    # A store older than this, or than half its changelog's delete.retention.ms, is rebuilt: tombstones may be gone (rule 18).
    rebuild_age_ms: int = 43_200_000
    trim_marks: bool = True
    # What is raised into an agent's code from outside and is no failure of its event: a test's time limit, Ctrl-C in a test.
    interrupts: tuple[type[BaseException], ...] = ()
    lineage: bool = True
    dead_letter_headers: tuple[str, ...] = ("kip1191",)
    # What dead letters say of the code that they failed under; empty where nobody knows.
    code_version: str = ""
