"""The scenarios by name, in the order in which they run: each takes the stage and gives an outcome.

The first line of a scenario's docstring is what `--help` says of it.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.outcome import Outcome
from benchmarks.scenarios.cluster import cluster
from benchmarks.scenarios.heartbeats import heartbeats
from benchmarks.scenarios.lifecycles import lifecycles
from benchmarks.scenarios.listing import listing
from benchmarks.scenarios.memory import memory
from benchmarks.scenarios.million import million
from benchmarks.scenarios.provider_sessions import provider_sessions
from benchmarks.scenarios.sizes import sizes
from benchmarks.scenarios.sweep import sweep
from benchmarks.scenarios.workers import workers
from benchmarks.stage import Stage

__all__ = ["ON_DEMAND", "SCENARIOS", "Scenario"]

Scenario = Callable[[Stage], Outcome]

SCENARIOS: dict[str, Scenario] = {
    "heartbeats": heartbeats,
    "create-delete": lifecycles,
    "provider-session": provider_sessions,
    "workers": workers,
    "sizes": sizes,
    "listing": listing,
    "sweep": sweep,
    "memory": memory,
    "cluster": cluster,
    "million": million,
}
ON_DEMAND = {"cluster", "million"}
"""Those that run only when they are asked for: neither is cheap, and neither compares the tracker with a floor."""
