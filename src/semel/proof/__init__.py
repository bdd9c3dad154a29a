"""Proof: what went into a pipeline held against what came out, law by law, with witnesses.

`broker` of `prove` is a started `semel.port.Broker`, `plan` a pipeline's or app's `.plan()`. The pipeline may run meanwhile:
what is committed after the position records were read is left to the next proof.
"""

from semel.proof.html import html
from semel.proof.logs import Recording
from semel.proof.proof import Finding, Gap, Law, Progress, Proof, Verdict, Witness
from semel.proof.prove import prove
from semel.proof.survey import NothingToProve

__all__ = [
    "Finding",
    "Gap",
    "Law",
    "NothingToProve",
    "Progress",
    "Proof",
    "Recording",
    "Verdict",
    "Witness",
    "html",
    "prove",
]
