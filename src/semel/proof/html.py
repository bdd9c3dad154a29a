"""A proof as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from semel.display.markup import frame, moment, table
from semel.proof.proof import PROMISES, Law, Proof, Verdict

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --dim: #59636e; --clean: #1a7f37; --violated: #cf222e;
  --unprovable: #9a6700; --panel: #f6f8fa }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --dim: #9198a1; --clean: #3fb950; --violated: #f85149;
  --unprovable: #d29922; --panel: #151b23 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
p.dim, .dim { color: var(--dim) }
.verdict { border-left: .4rem solid; padding: .6rem 1rem; background: var(--panel); margin: 1.2rem 0; font-size: 1.1rem }
.clean { border-color: var(--clean) } .violated { border-color: var(--violated) }
.unprovable { border-color: var(--unprovable) }
.holds { color: var(--clean) } .broken { color: var(--violated); font-weight: 600 }
table { border-collapse: collapse; width: 100% } td, th { border-bottom: 1px solid var(--line); padding: .35rem .6rem;
  text-align: left; vertical-align: top } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
td:first-child code, .holds, .broken { white-space: nowrap }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere } ul { padding-left: 1.2rem } li { margin: .4rem 0 }
"""


def html(proof: Proof) -> str:
    """The report, to be written as UTF-8."""
    title = f"{proof.pipeline}: {proof.verdict.value}"
    findings = [
        f"<code>{f.law.value}</code>: {escape(f.sentence)}"
        + "".join(f"<br><code class=dim>{escape(str(w))}</code>" for w in f.witnesses)
        for f in proof.findings
    ]
    laws = [[f"<code>{law.value}</code>", escape(PROMISES[law]), _result_of(law, proof)] for law in proof.laws]
    partitions = [[f"<code>{escape(tp.topic)}[{tp.partition}]</code>", *(f"{n:,}" for n in numbers)]
                  for tp, *numbers in proof.parts]  # fmt: skip
    headings = ("partition", "from offset", "to", "events", "took effect", "duplicates", "dead letters", "outputs")
    counts = [[escape(name.replace("_", " ")), f"{count:,}"] for name, count in proof.counts.items()]
    parts = (
        f"<h1>{escape(title)}</h1>",
        f"<p class=dim>{_asked(proof)}</p>",
        f"<div class='verdict {proof.verdict.value}'>{escape(proof.headline())}</div>",
        "<h2>Laws</h2>" + table(("law", "says that", ""), laws),
        _list("Findings", findings),
        _list("Unprovable", [escape(str(gap)) for gap in proof.gaps]),
        _list("Notes", [escape(note) for note in proof.notes]),
        "<h2>Partitions</h2>" + table(headings, partitions, numbers=range(1, 8)),
        "<h2>Counts</h2><p class=dim>What was looked at, and what the position records count.</p>",
        table(("", ""), counts, numbers=range(1, 8)),
    )
    return frame(title, _STYLE, "\n".join(filter(None, parts)))


def _asked(proof: Proof) -> str:
    bounds = [
        f"{name} {moment(ms)}" for name, ms in (("since", proof.since_ms), ("until", proof.until_ms)) if ms is not None
    ]
    over = ", ".join(bounds) or "the whole history"
    ledger = "the running counts close over it" if proof.ledger else "the running counts are not closed over it"
    return escape(f"semel prove, {moment(proof.at_ms)}; {over}; {ledger}.")


def _result_of(law: Law, proof: Proof) -> str:
    if count := proof.found.get(law, 0):
        return f"<span class=broken>{count:,} finding{'s' * (count > 1)}</span>"
    witnesses = " where there are witnesses" if proof.verdict is Verdict.UNPROVABLE else ""
    return f"<span class=holds>holds{witnesses}</span>"


def _list(heading: str, items: Sequence[str]) -> str:
    return f"<h2>{heading}</h2><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""
