"""A process of ours: started, watched through /proc, and ended by its id."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["ROOT", "Process", "StartError", "free_port"]

ROOT = Path(__file__).parent.parent
START_SECONDS = 30
STOP_SECONDS = 10
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """A process does not come up, or is gone; the message has the end of what it said."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A running program and its children, in a session of their own, so that a Ctrl-C reaches only us, who end them."""

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._name = Path(words[0]).name
        self._log = log
        with log.open("wb") as said:
            self._popen = subprocess.Popen(  # noqa: S603 - no words but ours
                words,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Returns once `ready` says so. Raises StartError when the process ends, or takes too long."""
        limit = time.monotonic() + START_SECONDS
        while True:
            if self._popen.poll() is not None:
                raise StartError(f"{self._name} ended: {self._last_words()}")
            with contextlib.suppress(OSError):
                if ready():
                    return
            if time.monotonic() > limit:
                raise StartError(f"{self._name} does not answer: {self._last_words()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it in order, or after ten seconds without, and then what may be left of its children."""
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # its group has its id, and nobody in it but what it started
        self._popen.wait()

    def kill(self) -> None:
        """As a crash: nothing is said to anybody."""
        self._popen.kill()
        self._popen.wait()

    def family(self) -> list[int]:
        """The process ids of it and of all that it started."""
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
        family = [self.pid]
        for pid in family:
            family += [child for child, parent in parents.items() if parent == pid]
        return family

    def cpu_seconds(self) -> float:
        """What it and all that it started have used of the processors so far, for themselves and in the kernel."""
        ticks = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                fields = _stat(pid)
                ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS_PER_SECOND

    def resident_bytes(self) -> int:
        """What of its memory is in RAM."""
        return self._status("VmRSS")

    def peak_resident_bytes(self) -> int:
        """The most since the start, or since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        match = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        if match is None:
            raise StartError(f"{self._name} is gone: {self._last_words()}")
        return int(match[1]) * 1024

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-10:]) or "it said nothing"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on: the second is a name, which may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
