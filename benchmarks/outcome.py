"""What a scenario found: rows of figures, and how they stand against the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.spread import Spread

__all__ = ["Outcome", "Row", "Target"]


@dataclass(frozen=True)
class Row:
    """Figures by name, in the units that the names end in, of one setting: ``{"subject": "tracker", ...}``."""

    setting: Mapping[str, str | int]
    figures: Mapping[str, Spread]


@dataclass(frozen=True)
class Target:
    """A figure that must be at most ``bound``, or at least, and what it is."""

    what: str
    figure: float
    bound: float
    unit: str = ""
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    @property
    def short_by(self) -> float:
        """How far from the bound, as a part of it; 0 when reached."""
        if self.reached:
            return 0.0
        return abs(self.figure - self.bound) / self.bound if self.bound else self.figure


@dataclass(frozen=True)
class Outcome:
    """All that a scenario found; ``notes`` are sentences for the reader."""

    rows: list[Row]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, **setting: str | int) -> Row | None:
        """The first row whose setting has these entries."""
        return next((row for row in self.rows if setting.items() <= row.setting.items()), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [
                {
                    **row.setting,
                    "figures": {
                        name: {"median": _short(spread.median), "min": _short(spread.low), "max": _short(spread.high)}
                        for name, spread in row.figures.items()
                    },
                }
                for row in self.rows
            ],
            "targets": [
                {
                    "what": target.what,
                    "figure": _short(target.figure),
                    "at least" if target.at_least else "at most": target.bound,
                    "unit": target.unit,
                    "reached": target.reached,
                    "short by": _short(target.short_by),
                }
                for target in self.targets
            ],
            "notes": self.notes,
        }


def _short(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
