"""What stays: `docs/performance/results.json` and the charts beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.outcome import Outcome
from benchmarks.pictures import draw
from benchmarks.plan import Plan
from benchmarks.process import ROOT

__all__ = ["DIRECTORY", "write"]

SPREAD = re.compile(r"\{\s+\"median\"[^{}]+\}")
"""Goes onto one line, so that people can read the file too."""
DIRECTORY = ROOT / "docs" / "performance"


def write(
    outcomes: Mapping[str, Outcome], plan: Plan, machine: Mapping[str, Any], directory: Path = DIRECTORY
) -> list[Path]:
    """Writes the scenarios that ran, and leaves what the file says of the others; the files it wrote."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "results.json"
    known = json.loads(path.read_text())["scenarios"] if path.exists() else {}
    measured = {"mode": plan.mode, "rounds": plan.rounds, "seconds": plan.seconds, "machine": dict(machine)}
    new = {name: {**measured, **outcome.to_json()} for name, outcome in outcomes.items()}
    text = json.dumps({"scenarios": {**known, **new}}, indent=1, ensure_ascii=False)
    path.write_text(SPREAD.sub(lambda spread: " ".join(spread[0].split()), text) + "\n")
    written = [path]
    for name, drawn in draw(outcomes).items():
        (directory / name).write_text(drawn)
        written.append(directory / name)
    return written
