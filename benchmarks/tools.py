"""The programs that the benchmarks need beside Python."""

from __future__ import annotations

import shutil
import sys

__all__ = ["MissingTool", "check_tools", "find_tool"]

PACKAGES = {"wrk": "wrk", "redis-server": "redis-server", "valkey-server": "redis-server"}


class MissingTool(Exception):
    """One line: what is missing, and how to get it."""


def find_tool(*names: str) -> str:
    """The path of the first of these that is installed. Raises MissingTool."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise MissingTool(f"the benchmarks need {names[0]} on the PATH: apt-get install {PACKAGES[names[0]]}")
    return path


def check_tools() -> None:
    """Raises MissingTool, before anything is started."""
    if sys.platform != "linux":
        raise MissingTool("the benchmarks read processor times from /proc: they need Linux")
    find_tool("wrk")
    find_tool("redis-server", "valkey-server")
