"""Journal: what a process of the run saw, a JSON object per line, each on disk as soon as it is written.

Times are in ms since 1970 by the machine's clock, which is Redis's too; ``mono`` is the monotonic clock at the same
moment, so that the checker notices when somebody sets the clock during a run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Journal", "Moment", "moment", "read_journal"]


class Moment(NamedTuple):
    wall: float
    mono: float


def moment() -> Moment:
    return Moment(time.time() * 1000, time.monotonic() * 1000)


class Journal:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)
