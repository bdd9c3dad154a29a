"""The report as one HTML file: its sentences, a picture of the timeline, each fault, the proof.

Self-contained: no script, no font and no picture comes from anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from semel.chaos.faults import FAULTS
from semel.chaos.report import Report, summary
from semel.chaos.timeline import Entry, Timeline, rates
from semel.display.markup import frame, table
from semel.proof import html

WIDTH, LEFT, RIGHT = 1120.0, 96.0, 16.0
LANE, CURVE = 22.0, 84.0
RATE_OVER_S = 3.0
# More marks than this in a row cannot be told apart; their table has them all.
TICKS = 12
STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 36000)

# Hues all around the circle, far from those of the kinds beside them.
COLOURS = {
    kind: f"hsl({number * 7 % len(FAULTS) * 360 // len(FAULTS)} {70 - 30 * (number % 2)}% 45%)"
    for number, kind in enumerate(FAULTS)
}

_STYLE = """
:root{--running:#a9dfbf;--starting:#f9e79f;--frozen:#aed6f1;--dead:#f5b7b1}
@media(prefers-color-scheme:dark){:root{--running:#1d6b40;--starting:#7d6608;--frozen:#1f5f8b;--dead:#7b241c}}
figure{margin:0}pre{background:var(--soft);padding:.8rem}
svg text{fill:var(--dim);font:11px system-ui,sans-serif}svg .name{fill:var(--ink)}
iframe{width:100%;height:40rem;border:1px solid var(--line)}
"""


def page(report: Report) -> str:
    title, entries = f"chaos: {report.pipeline}", report.timeline.entries
    faults = [
        (f"{e.number}", f"{e.at_s:.1f}", *map(escape, (e.what, e.whom, _seconds(e.recovery_s), e.remarks)))
        for e in entries
    ]
    if report.proof is None:
        proof = "<p class=bad>The run did not come to its proof.</p>"
    else:
        proof = f'<iframe title="proof" sandbox srcdoc="{escape(html(report.proof), quote=True)}"></iframe>'
    body = (
        f'<h1>{escape(title)}: <span class="{"good" if report.ok else "bad"}">{escape(report.verdict)}</span></h1>'
        f"<pre>{escape(summary(report))}</pre>"
        f"<h2>Timeline</h2><figure>{picture(report.timeline, report.seconds)}"
        "<figcaption class=dim>Above: each fault where it began, a bar until it was healed, thin until it was recovered from. "
        "Then the workers; below, source records done per second, and how many were still to be done.</figcaption></figure>"
        "<details><summary>Every fault</summary>"
        f"{table(('#', 'at, s', 'what', 'whom', 'recovered after', ''), faults, numbers=(0, 1, 4))}</details>"
        f"<h2>Proof</h2>{proof}"
        f"<h2>How it was made</h2><p>{'<br>'.join(map(escape, report.notes))}</p>"
        f"<p class=dim>The same faults and events again: --seed {report.seed} --workers {report.workers} "
        f"--brokers {report.brokers} --partitions {report.partitions} --faults {escape(','.join(report.kinds))}</p>"
    )
    return frame(title, _STYLE, body)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


# -- the picture


def picture(timeline: Timeline, seconds: float) -> str:
    """Faults, workers, throughput and lag over the time of the run, as inline SVG."""
    end = max(seconds, 1.0, *(s.at_s for s in timeline.samples[-1:]))

    def x(at_s: float) -> float:
        return LEFT + min(max(at_s, 0.0), end) * (WIDTH - LEFT - RIGHT) / end

    rows = _rows(timeline.entries, end)
    top_lanes = max(1, 1 + max(rows.values(), default=0)) * 10.0 + 16
    top_rate = top_lanes + len(timeline.turns) * LANE + 18
    top_lag = top_rate + CURVE + 26
    height = top_lag + CURVE + 26
    step = next(s for s in STEPS_S if end / s <= TICKS)
    parts = [f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="timeline" width="100%">']
    for at_s in range(0, int(end) + 1, step):
        parts.append(_line(x(at_s), 0, x(at_s), height - 18, "var(--line)"))
        parts.append(f'<text x="{x(at_s):.1f}" y="{height - 5:.1f}" text-anchor="middle">{at_s:g} s</text>')
    parts.append(_name("faults", 14))
    parts += [_fault(entry, rows[entry.number] * 10.0 + 6, x, end) for entry in timeline.entries]
    for number, worker in enumerate(sorted(timeline.turns)):
        y = top_lanes + number * LANE
        parts.append(_name(worker, y + 14))
        parts += [
            f"<g><title>{escape(worker)} {phase} from {since:.1f} s to {until:.1f} s</title>"
            f"{_bar(x(since), y + 3, max(1.0, x(until) - x(since)), LANE - 6, f'var(--{phase})')}</g>"
            for since, until, phase in timeline.spans(worker, end)
            if phase != "away"
        ]
    done = [(x(at), value) for at, value in rates(timeline.samples, RATE_OVER_S)]
    to_do = [(x(s.at_s), float(s.lag)) for s in timeline.samples]
    parts += [_curve("done/s", done, top_rate, "#1e8449"), _curve("to be done", to_do, top_lag, "#c0392b")]
    return "".join(parts) + "</svg>" + _legend()


def _rows(entries: Sequence[Entry], end: float) -> dict[int, int]:
    """Fault -> row, so that two that last at once do not lie over each other."""
    free: list[float] = []
    rows: dict[int, int] = {}
    for entry in sorted(entries, key=lambda e: e.at_s):
        row = next((n for n, at in enumerate(free) if at <= entry.at_s), len(free))
        until = max(entry.recovered_s or entry.healed_s or end, entry.at_s + end / 200)
        free[row : row + 1] = [until]
        rows[entry.number] = row
    return rows


def _fault(entry: Entry, y: float, x: Callable[[float], float], end: float) -> str:
    colour = COLOURS.get(entry.kind, "#555")
    healed = x(end if entry.healed_s is None else entry.healed_s)
    recovered = x(end if entry.recovered_s is None else entry.recovered_s)
    about = f"#{entry.number} {entry.what} → {entry.whom}, at {entry.at_s:.1f} s"
    if entry.recovery_s is not None:
        about += f", recovered {entry.recovery_s:.1f} s after its end"
    began = x(entry.at_s)
    bar = _bar(began, y - 3.5, max(3.0, healed - began), 7, colour, opacity=1 if entry.bit else 0.35)
    return f"<g><title>{escape(about)}</title>{_line(healed, y, recovered, y, colour)}{bar}</g>"


def _curve(name: str, points: Sequence[tuple[float, float]], top: float, colour: str) -> str:
    most = max((value for _, value in points), default=0.0) or 1.0
    path = " ".join(f"{x:.1f},{top + CURVE - value / most * CURVE:.1f}" for x, value in points)
    area = f"{points[0][0]:.1f},{top + CURVE:.1f} {path} {points[-1][0]:.1f},{top + CURVE:.1f}" if points else ""
    return (
        f'{_name(name, top + 14)}<text x="0" y="{top + 28:.1f}">≤ {most:,.0f}</text>'
        f"{_line(LEFT, top + CURVE, WIDTH - RIGHT, top + CURVE, 'var(--line)')}"
        f'<polygon points="{area}" fill="{colour}" opacity="0.15"/>'
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    )


def _name(text: str, y: float) -> str:
    return f'<text class=name x="0" y="{y:.1f}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _bar(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {at} rx="2" fill="{colour}" opacity="{opacity}"/>'


def _legend() -> str:
    phases = {phase: f"var(--{phase})" for phase in ("running", "starting", "frozen", "dead")}
    shown = [" ".join(f'<span style="color:{c}">■</span> {n}' for n, c in part.items()) for part in (COLOURS, phases)]
    return f"<p class=dim>{' · '.join(shown)}</p>"
