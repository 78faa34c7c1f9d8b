"""Garbage: what Python's collector is spared in a process that serves.

A request leaves no cycles behind, so there is nothing to find; but with dozens of them under way their objects make the
collector look again and again, in the end at all that was ever imported: 20 ms in which nobody is answered.
"""

from __future__ import annotations

import gc

__all__ = ["spare_collector"]

YOUNG = 10_000
"""Objects made and not yet dropped until it looks at them: those of some 300 requests. Python's own number is 700."""
OLDER = 50
"""Looks at the young until it looks at the older; looks at those until it looks at all that came since the start."""


def spare_collector() -> None:
    """To be called once, when all is imported: what is there now is never looked at again. Of the whole process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)
