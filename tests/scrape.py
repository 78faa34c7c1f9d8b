"""A scrape of /metrics, read back by the parser of the library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Scrape"]


class Scrape:
    """The samples of one scrape. Names are those of the samples: counters end in _total."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: Any) -> float:
        """The sum of all samples of that name with those labels; 0 where there is none."""
        wanted = {label: str(value) for label, value in labels.items()}.items()
        return sum(value for sample, has, value in self.samples() if sample == name and wanted <= has.items())

    def has(self, name: str) -> bool:
        return any(sample == name for sample, _, _ in self.samples())

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for family in self.families.values():
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value
