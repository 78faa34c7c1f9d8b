"""How much is measured: the full plan of some 13 minutes, and the short one of about a minute."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "SHORT", "Plan"]


@dataclass(frozen=True)
class Plan:
    """``seconds`` is the length of one wrk run (wrk counts whole ones); a round has one run of each subject."""

    mode: str
    rounds: int
    seconds: int
    connections: tuple[int, ...]
    peers_at: tuple[int, ...]
    """Connections at which all baselines take part, not only the no-op route."""
    scaled: tuple[str, ...]
    """Who is measured with one worker and with two."""
    sizes: tuple[int, ...]
    """Live sessions whose heartbeats are compared."""
    listed: tuple[int, ...]
    expired: int
    """Sessions for the sweep to end."""
    sweeps: int
    remembered: int
    """Sessions whose memory is measured."""
    masters: tuple[int, ...]
    """Sizes of the clusters whose heartbeats are compared."""
    held: int
    """Sessions that are held on a cluster, and for how many seconds."""
    hold_seconds: int


FULL = Plan(
    mode="full",
    rounds=5,
    seconds=5,
    connections=(1, 8, 32, 128, 512),
    peers_at=(1, 32),
    scaled=("tracker", "noop"),
    sizes=(1_000, 100_000, 1_000_000),
    listed=(20_000, 100_000),
    expired=100_000,
    sweeps=3,
    remembered=100_000,
    masters=(1, 2, 3),
    held=1_000_000,
    hold_seconds=600,
)

SHORT = Plan(
    mode="short",
    rounds=3,
    seconds=1,
    connections=(1, 32, 512),
    peers_at=(32,),
    scaled=("tracker",),
    sizes=(1_000, 50_000),
    listed=(20_000,),
    expired=20_000,
    sweeps=1,
    remembered=10_000,
    masters=(1, 3),
    held=10_000,
    hold_seconds=40,
)
