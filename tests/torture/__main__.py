"""``python -m tests.torture``: a run, its figures, and what the checker says to it; exits with 1 where it is red."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.redis_server import BINARIES, is_installed
from tests.torture.checker import judge
from tests.torture.figures import shortcomings, tell
from tests.torture.history import History
from tests.torture.run import run
from tests.torture.sabotage import SABOTAGES

SHOWN = 5
"""Breaches of each invariant that are told in full."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=None, help="of clients and nemesis; by default a new one")
    parser.add_argument("--cluster", action="store_true", help="on three masters and three replicas")
    parser.add_argument("--sabotage", choices=SABOTAGES, help="start the pods from a copy with this bug in it")
    parser.add_argument("--keep", type=Path, help="a new directory for logs and data, to be kept")
    parser.add_argument("--check", type=Path, help="only judge what an earlier run has kept there")
    options = parser.parse_args()
    if options.check:
        return verdict(options.check)
    if not is_installed():
        print(f"torture needs a real Redis: install {' or '.join(BINARIES)}", file=sys.stderr)
        return 1
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    logging.getLogger("tracker").addHandler(logging.NullHandler())  # the witness has a store of its own
    # As Ctrl-C, which ends the run and with it all its processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        directory: Path = options.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        print(f"torture: seed {seed}, {options.seconds:g} s{', on a cluster' * options.cluster}", flush=True)
        try:
            asyncio.run(run(seed, options.seconds, directory, options.sabotage, on_cluster=options.cluster))
        except KeyboardInterrupt:
            print("interrupted: nothing judged", file=sys.stderr)
            return 130
        return verdict(directory)


def verdict(directory: Path) -> int:
    """Prints figures and breaches; the exit status."""
    history = History.read(directory)
    for line in tell(history):
        print(line)
    breaches = judge(history)
    shown: Counter[str] = Counter()
    for breach in breaches:
        shown[breach.invariant] += 1
        if shown[breach.invariant] <= SHOWN:
            print(f"BREACH of {breach.invariant}: {breach.text}")
    lacking = list(shortcomings(history))
    for line in lacking:
        print(f"TOO LITTLE: {line}")
    if breaches:
        print("red: " + ", ".join(f"{invariant} {count}" for invariant, count in shown.items()))
    print("red" if breaches or lacking else "green: I1 to I11 hold")
    return 1 if breaches or lacking else 0


if __name__ == "__main__":
    sys.exit(main())
