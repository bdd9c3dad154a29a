"""A proof as one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape

from semel.display.markup import frame, listing, moment, table
from semel.proof.proof import Law, Proof, Verdict

STYLE = """
.verdict{border-left:.4rem solid;padding:.6rem 1rem;background:var(--soft);margin:1.2rem 0;font-size:1.1rem}
.clean{border-color:var(--good)}.violated{border-color:var(--bad)}.unprovable{border-color:var(--unsure)}
td:first-child code,td>span{white-space:nowrap}
"""


def html(proof: Proof) -> str:
    """The report, to be written as UTF-8."""
    title = f"{proof.pipeline}: {proof.verdict.value}"
    return frame(title, STYLE, f"<h1>{escape(title)}</h1>{body(proof)}")


def body(proof: Proof) -> str:
    """What stands on the page, for a page that has more; it needs `STYLE`."""
    findings = [
        f"<code>{f.law.value}</code>: {escape(f.sentence)}"
        + "".join(f"<br><code class=dim>{escape(str(w))}</code>" for w in f.witnesses)
        for f in proof.findings
    ]
    laws = [[f"<code>{law.value}</code>", escape(law.promise), _result_of(law, proof)] for law in proof.laws]
    partitions = [[f"<code>{escape(tp.topic)}[{tp.partition}]</code>", *(f"{n:,}" for n in numbers)]
                  for tp, *numbers in proof.parts]  # fmt: skip
    headings = ("partition", "from offset", "to", "events", "took effect", "duplicates", "dead letters", "outputs")
    counts = [[escape(name.replace("_", " ")), f"{count:,}"] for name, count in proof.counts.items()]
    parts = (
        f"<p class=dim>{_asked(proof)}</p>",
        f"<div class='verdict {proof.verdict.value}'>{escape(proof.headline())}</div>",
        "<h2>Laws</h2>" + table(("law", "says that", ""), laws),
        listing("Findings", findings),
        listing("Unprovable", [escape(str(gap)) for gap in proof.gaps]),
        listing("Notes", [escape(note) for note in proof.notes]),
        "<h2>Partitions</h2>" + table(headings, partitions, numbers=range(1, 8)),
        "<h2>Counts</h2><p class=dim>What was looked at, and what the position records count.</p>",
        table(("", ""), counts, numbers=range(1, 8)),
    )
    return "\n".join(filter(None, parts))


def _asked(proof: Proof) -> str:
    bounds = [
        f"{name} {moment(ms)}" for name, ms in (("since", proof.since_ms), ("until", proof.until_ms)) if ms is not None
    ]
    over = ", ".join(bounds) or "the whole history"
    ledger = "the running counts close over it" if proof.ledger else "the running counts are not closed over it"
    return escape(f"semel prove, {moment(proof.at_ms)}; {over}; {ledger}.")


def _result_of(law: Law, proof: Proof) -> str:
    if count := proof.by_law.get(law, 0):
        return f"<span class=bad>{count:,} finding{'s' * (count > 1)}</span>"
    witnesses = " where there are witnesses" if proof.verdict is Verdict.UNPROVABLE else ""
    return f"<span class=good>holds{witnesses}</span>"
