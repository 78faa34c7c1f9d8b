"""Where it was measured: what matters for figures, and nothing that tells whose machine it is."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.redis_server import RedisServer
from benchmarks.tools import find_tool

__all__ = ["describe"]

PACKAGES = ("tracker", "uvicorn", "uvloop", "httptools", "starlette", "redis", "hiredis", "pydantic")


def describe(redis: RedisServer) -> dict[str, Any]:
    """Cores, memory, and the versions of all that takes part."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _first(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text()) or platform.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "redis": redis.version,
        "wrk": _wrk_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _wrk_version() -> str:
    words = [find_tool("wrk"), "--version"]
    said = subprocess.run(words, capture_output=True, text=True).stdout  # noqa: S603 - no words but ours
    return _first(r"^wrk (?:debian/)?(\S+)", said) or "unknown"


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else None
