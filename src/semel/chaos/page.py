"""The report as one HTML file: its sentences, a picture of the timeline, each fault, the proof.

Self-contained: no script, no font and no picture comes from anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from semel.chaos.report import Report, summary
from semel.chaos.timeline import Entry, Timeline, rates
from semel.display.markup import frame, table
from semel.proof.html import STYLE, body

WIDTH, LEFT, RIGHT = 1120.0, 96.0, 16.0
LANE, CURVE = 16.0, 84.0
RATE_OVER_S = 3.0
# More marks than this in a row cannot be told apart; their table has them all.
TICKS = 12
STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 36000)

_STYLE = """
:root{--running:#a9dfbf;--starting:#f9e79f;--frozen:#aed6f1;--dead:#f5b7b1}
@media(prefers-color-scheme:dark){:root{--running:#1d6b40;--starting:#7d6608;--frozen:#1f5f8b;--dead:#7b241c}}
figure{margin:0}pre{background:var(--soft);padding:.8rem}
svg text{fill:var(--dim);font:11px system-ui,sans-serif}svg .name{fill:var(--ink)}
"""

_LEGEND = " ".join(
    f'<span style="color:var(--{phase})">■</span> {phase}' for phase in ("running", "starting", "frozen", "dead")
)


def page(report: Report) -> str:
    title, entries = f"chaos: {report.pipeline}", report.timeline.entries
    faults = [
        (f"{e.number}", f"{e.at_s:.1f}", *map(escape, (e.what, e.whom, _seconds(e.recovery_s), e.remarks)))
        for e in entries
    ]
    proof = "<p class=bad>The run did not come to its proof.</p>" if report.proof is None else body(report.proof)
    parts = (
        f'<h1>{escape(title)}: <span class="{"good" if report.ok else "bad"}">{escape(report.verdict)}</span></h1>'
        f"<pre>{escape(summary(report))}</pre>"
        f"<h2>Timeline</h2><figure>{picture(report.timeline, report.seconds)}"
        "<figcaption class=dim>Above: each fault until it was healed, pale where it met nothing at work, then thin until it was "
        f"recovered from. Then the workers: {_LEGEND}. Below: source records done per second, and how many were still to be "
        "done.</figcaption></figure>"
        "<details><summary>Every fault</summary>"
        f"{table(('#', 'at, s', 'what', 'whom', 'recovered after', ''), faults, numbers=(0, 1, 4))}</details>"
        f"<h2>Proof</h2>{proof}"
        f"<h2>How it was made</h2><p>{'<br>'.join(map(escape, report.notes))}</p>"
        f"<p class=dim>The same faults and events again: --seed {report.seed} --workers {report.workers} "
        f"--brokers {report.brokers} --partitions {report.partitions} --faults {escape(','.join(report.kinds))}</p>"
    )
    return frame(title, STYLE + _STYLE, parts)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


# -- the picture


class _Bar(NamedTuple):
    """`share`: of its lane's height."""

    since: float
    until: float
    colour: str
    about: str
    share: float = 0.7


def picture(timeline: Timeline, seconds: float) -> str:
    """A lane for each kind of fault and each worker, throughput and lag over the time of the run, as inline SVG."""
    end = max(seconds, 1.0, *(s.at_s for s in timeline.samples[-1:]))

    def x(at_s: float) -> float:
        return LEFT + min(max(at_s, 0.0), end) * (WIDTH - LEFT - RIGHT) / end

    lanes = {kind: [] for kind in timeline.by_kind()} | {
        worker: [
            _Bar(since, until, f"var(--{phase})", f"{worker} {phase} from {since:.1f} s to {until:.1f} s")
            for since, until, phase in timeline.spans(worker, end)
            if phase != "away"
        ]
        for worker in sorted(timeline.turns)
    }
    for entry in timeline.entries:
        lanes[entry.kind] += _bars(entry, end)
    top_rate = len(lanes) * LANE + 18
    top_lag = top_rate + CURVE + 26
    height = top_lag + CURVE + 26
    parts = [f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="timeline" width="100%">']
    for at_s in range(0, int(end) + 1, next(s for s in STEPS_S if end / s <= TICKS)):
        parts.append(f'<path d="M{x(at_s):.1f} 0V{height - 18:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{x(at_s):.1f}" y="{height - 5:.1f}" text-anchor="middle">{at_s:g} s</text>')
    for number, (name, bars) in enumerate(lanes.items()):
        parts.append(_name(name, number * LANE + 12))
        parts += [
            f'<rect x="{x(bar.since):.1f}" y="{(number + 0.5 - bar.share / 2) * LANE:.1f}" height="{bar.share * LANE:.1f}" '
            f'width="{max(2.0, x(bar.until) - x(bar.since)):.1f}" fill="{bar.colour}"><title>{escape(bar.about)}</title></rect>'
            for bar in bars
        ]
    done = [(x(at), value) for at, value in rates(timeline.samples, RATE_OVER_S)]
    to_do = [(x(s.at_s), float(s.lag)) for s in timeline.samples]
    parts += [_curve("done/s", done, top_rate, "var(--good)"), _curve("to be done", to_do, top_lag, "var(--bad)")]
    return "".join(parts) + "</svg>"


def _bars(entry: Entry, end: float) -> Iterator[_Bar]:
    """Of a fault, until it was healed; and, thin, until it was recovered from."""
    about = f"#{entry.number} {entry.what} → {entry.whom}, at {entry.at_s:.1f} s"
    if entry.recovery_s is not None:
        about += f", recovered {entry.recovery_s:.1f} s after its end"
    healed = end if entry.healed_s is None else entry.healed_s
    yield _Bar(healed, end if entry.recovered_s is None else entry.recovered_s, "var(--dim)", about, 0.1)
    yield _Bar(entry.at_s, healed, "var(--link)" if entry.bit else "var(--line)", about)


def _curve(name: str, points: Sequence[tuple[float, float]], top: float, colour: str) -> str:
    most = max((value for _, value in points), default=0.0) or 1.0
    path = " ".join(f"{x:.1f},{top + CURVE - value / most * CURVE:.1f}" for x, value in points)
    return (
        f'{_name(name, top + 14)}<text x="0" y="{top + 28:.1f}">≤ {most:,.0f}</text>'
        f'<path d="M{LEFT} {top + CURVE:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>'
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    )


def _name(text: str, y: float) -> str:
    return f'<text class=name x="0" y="{y:.1f}">{escape(text)}</text>'
