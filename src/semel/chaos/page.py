"""The report as one HTML file: what was promised and found, a picture of the timeline, each fault, the proof.

Self-contained: no script, no font and no picture comes from anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from semel.chaos.faults import FAULTS
from semel.chaos.report import Report
from semel.chaos.timeline import Entry, Timeline, rates
from semel.display.markup import frame, table

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
:root { color-scheme: light dark; --ink: #1d2733; --dim: #667282; --line: #d8dee5; --back: #ffffff; --soft: #f4f6f8;
  --good: #1e8449; --bad: #c0392b; --running: #a9dfbf; --starting: #f9e79f; --frozen: #aed6f1; --dead: #f5b7b1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --dim: #93a0ae; --line: #34404d; --back: #151b22;
  --soft: #1e262f; --good: #58d68d; --bad: #ff7b6b; --running: #1d6b40; --starting: #7d6608; --frozen: #1f5f8b;
  --dead: #7b241c; } }
body { margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: var(--ink); background: var(--back);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.dim, figcaption { color: var(--dim); } .clean { color: var(--good); } .bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--soft); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } figure { margin: 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; background: var(--soft); padding: .8rem; border-radius: 8px; font-size: .85rem; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; } svg .name { fill: var(--ink); }
iframe { width: 100%; height: 40rem; border: 1px solid var(--line); border-radius: 8px; }
"""


def page(report: Report) -> str:
    title, entries = f"chaos: {report.pipeline}", report.timeline.entries
    kinds = [
        (escape(kind), f"{count['faults']:,}", f"{count['bit']:,}", "")
        for kind, count in report.timeline.by_kind().items()
    ]
    kinds += [
        (escape(kind), "0", "0", f"<span class=dim>{escape(why)}</span>") for kind, why in report.left_out.items()
    ]
    faults = [
        (f"{e.number}", f"{e.at_s:.1f}", *map(escape, (e.what, e.whom, _seconds(e.recovery_s), e.remarks)))
        for e in entries
    ]
    body = (
        f'<h1>{escape(title)} — <span class="{"clean" if report.ok else "bad"}">{escape(report.verdict)}</span></h1>'
        f'<div class="dim">seed {report.seed} · {report.workers} workers · {report.brokers} '
        f"broker{'s' if report.brokers > 1 else ''} · {report.partitions} partitions · {report.seconds:,.0f} s</div>"
        f"{_cards(report)}{_findings(report)}"
        f"<h2>Timeline</h2><figure class=wide>{picture(report.timeline, report.seconds)}"
        "<figcaption>Above: each fault where it began, a bar until it was healed, thin until it was recovered from. Then "
        "the workers; below, source records done per second, and how many were still to be done.</figcaption></figure>"
        f"<h2>Faults by kind</h2>{table(('kind', 'faults', 'met something at work', ''), kinds, numbers=(1, 2))}"
        "<details><summary>Every fault</summary><div class=wide>"
        f"{table(('#', 'at, s', 'what', 'whom', 'recovered after', ''), faults, numbers=(0, 1, 4))}</div></details>"
        f"{_proof(report)}"
        f"<h2>How it was made</h2><p>{'<br>'.join(map(escape, (*report.notes, *report.mended)))}</p>"
        f"<p class=dim>The same faults and events again: --seed {report.seed} --workers {report.workers} "
        f"--brokers {report.brokers} --partitions {report.partitions} --faults {escape(','.join(report.kinds))}</p>"
    )
    return frame(title, _STYLE, body)


def _cards(report: Report) -> str:
    document = report.document()
    recoveries, events = document["recoveries"], document["events"]
    cards = {
        "faults": f"{document['faults']['total']:,}",
        "met something at work": f"{document['faults']['bit']:,}",
        "recovery, median": _seconds(recoveries["p50_s"]),
        "recovery, at most": _seconds(recoveries["max_s"]),
        "records published": f"{events.get('published', 0):,}",
        "redelivered": f"{events.get('redelivered', 0):,}",
        "findings": f"{len(report.all_findings):,}",
    }
    return f"<div class=cards>{''.join(f'<div class=card><b>{n}</b>{name}</div>' for name, n in cards.items())}</div>"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


def _findings(report: Report) -> str:
    shown = "".join(f"<pre class=bad>{escape(finding)}</pre>" for finding in report.all_findings)
    shown += "".join(f"<p>note: {escape(remark)}</p>" for remark in report.remarks)
    shown += "".join(f"<p class=bad>void: {escape(reason)}</p>" for reason in report.void)
    return f"<h2>Findings</h2>{shown}" if shown else ""


def _proof(report: Report) -> str:
    if report.proved is None:
        return "<h2>Proof</h2><p class=bad>The run did not come to its proof.</p>"
    summary = "".join(f"<li>{escape(line)}" for line in report.proved.summary)
    inner = escape(report.proved.html, quote=True)
    return f"<h2>Proof</h2><ul>{summary}</ul>" + (inner and f'<iframe title="proof" sandbox srcdoc="{inner}"></iframe>')


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
