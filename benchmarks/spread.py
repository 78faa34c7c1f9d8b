"""Median and spread of what the rounds gave."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

__all__ = ["Spread", "ratios"]


@dataclass(frozen=True)
class Spread:
    """The median of some values, the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Raises ValueError when there are none."""
        known = sorted(values)
        if not known:
            raise ValueError("no values, no median")
        return cls(statistics.median(known), known[0], known[-1])


def ratios(figures: Sequence[float], floor: Sequence[float]) -> Spread:
    """The ratios of each round's figure to the same round's floor. Raises ValueError when rounds are missing."""
    return Spread.of(figure / base for figure, base in zip(figures, floor, strict=True))
