"""Serves a baseline as `tracker serve` serves the tracker: `python -m benchmarks.serving noop`, TRACKER_* as ever.

It runs the very function that `tracker serve` runs, and only swaps the application where uvicorn is handed its
settings. So whatever becomes of those settings, the baseline has them too.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import uvicorn

from tracker.cli import serve
from tracker.settings import Settings

__all__ = ["BaselineConfig", "serve_baseline"]

VARIABLE = "BENCHMARK_BASELINE"


class BaselineConfig(uvicorn.Config):
    """uvicorn's settings with the application swapped. uvicorn's workers unpickle it: it must be importable."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(f"benchmarks.baselines:{os.environ[VARIABLE]}", **{**options, "factory": False})


def serve_baseline(name: str) -> None:
    """Serves until a signal ends it."""
    os.environ[VARIABLE] = name
    for module in ("uvicorn", "uvicorn.main"):  # where tracker serve, and uvicorn.run in its stead, look it up
        setattr(import_module(module), "Config", BaselineConfig)  # noqa: B010 - mypy allows no plain assignment
    settings = Settings.load()
    with serve.listen(settings) as listener:
        serve.run(settings, listener)


if __name__ == "__main__":
    from benchmarks import serving  # not as __main__: the workers import the class by its module's name

    serving.serve_baseline(sys.argv[1])
