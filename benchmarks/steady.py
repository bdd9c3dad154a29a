"""The memory of one worker over an hour of steady load: does it grow?

    python -m benchmarks.steady [--minutes M] [--rate R]

Payments at an even rate, a fifth of them redelivered, each sent at its moment. Marks live for five minutes, so that
what may grow is what nobody lets go of. RocksDB's cache and write buffers fill in the first third of an hour; compared are
the medians of resident memory in the third quarter of the time and in the last one.
"""

from __future__ import annotations

import argparse
import threading
from collections import Counter
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.inputs import deliveries, publish_at_rate
from benchmarks.jobs.steady import SOURCE
from benchmarks.memory import Curve
from benchmarks.rig import Failed, Worker, place, published

# Allocators and caches breathe; a leak of 20 bytes an event shows at 500 events/s within an hour.
FLAT_MB = 15


def main() -> None:
    asked = _arguments().parse_args()
    events = int(asked.minutes * 60 * asked.rate / 1.2)
    with place() as at, Worker("benchmarks.jobs.steady", at) as worker:
        records = deliveries("payments", events, seed=1, share=0.2, counts=(counts := Counter[str]()))
        sent: list[int] = []
        load = threading.Thread(
            target=lambda: sent.append(published(publish_at_rate(at.broker, SOURCE, records, asked.rate))), daemon=True
        )
        load.start()
        worker.wait("up", worker.view)
        with Curve(worker) as curve:
            load.join()
            view = worker.wait("through", lambda: _through(worker, sent))
        document: dict[str, Any] = {
            "benchmark": "steady",
            "load_average": at.load,
            "counts": view["counts"],
            "commits": view["commits"],
            "cpu_us_per_event": round(worker.cpu().process / sent[0] * 1e6, 1),
            "duplicates_sent": sum(counts.values()) - events,
            **_quarters(curve.seen),
            "curve_mb": curve.thinned(60),
        }
    grown = document["grown_mb"]
    report.finish(
        {**document, "ok": grown <= FLAT_MB},
        f"{asked.minutes:g} minutes at {asked.rate:g} events/s: {document['third_quarter_mb']} MB in the third quarter, "
        f"{document['last_quarter_mb']} MB in the last ({grown:+} MB)",
    )


def _through(worker: Worker, sent: list[int]) -> dict[str, Any] | None:
    if not sent:
        raise Failed("the load broke off; why stands above")
    view = worker.view()
    return view if view and view["counts"].get("in") == sent[0] else None


def _quarters(curve: list[float]) -> dict[str, float]:
    quarter = len(curve) // 4
    third, last = median(curve[2 * quarter : 3 * quarter]), median(curve[3 * quarter :])
    return {"third_quarter_mb": third, "last_quarter_mb": last, "grown_mb": round(last - third, 1)}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steady", description="Memory over an hour.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1000, help="events per second, redeliveries among them")
    return parser


if __name__ == "__main__":
    main()
