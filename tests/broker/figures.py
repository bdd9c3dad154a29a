"""Figures of a run: how long recovery took and the like. Recorded, shown at the end, never a reason to fail."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Figures:
    values: dict[str, float] = field(default_factory=dict)

    def record(self, name: str, value: float) -> None:
        self.values[name] = round(value, 3)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.values, indent=2, sort_keys=True) + "\n")
