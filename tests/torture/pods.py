"""Pod: a `tracker serve` with its workers, which can be frozen, killed and started again where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

__all__ = ["Pod", "StartError"]

START_SECONDS = 60
STOP_SECONDS = 20
OURS = ("API_KEY", "REDIS_URL")


class StartError(Exception):
    """A pod does not come up; the message has the end of its log."""


class Pod:
    """``name``: how faults call it. It and its workers are a process group, so that signals reach them all."""

    def __init__(self, number: int, port: int, package: Path, environment: dict[str, str], log: Path) -> None:
        self.name = f"pod{number}"
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._package = package
        self._log = log
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("TRACKER_") and name not in OURS
        }
        # The package may be a copy with a bug in it: the directory comes first, before what is installed.
        self._environment = inherited | environment | {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Returns once it answers. Raises StartError."""
        self._launch()
        await self.until_up()

    def _launch(self) -> None:
        with self._log.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tracker", "serve", "--port", str(self._port)],
                cwd=self._package,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Ends the group when the pipe to it closes: should we be killed ourselves, nothing is left running.
        self._watchdog = subprocess.Popen(
            ["sh", "-c", f"cat; kill -9 -{self._process.pid}"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    async def until_up(self) -> None:
        """Returns once it answers again. Raises StartError."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS), httpx.AsyncClient(trust_env=False) as client:
                while self._process is not None and self._process.poll() is None:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get(f"{self.url}/health", timeout=1)).status_code == 200:
                            return
                    await asyncio.sleep(0.05)
        raise StartError(f"{self.name} does not come up:\n" + self._log.read_text(errors="replace")[-2000:])

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a crash. Once more does no harm."""
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
            self._watchdog = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def stop(self) -> int:
        """Ends it in order; what it exits with. One that takes too long is killed, and exits with -9."""
        assert self._process is not None
        process = self._process
        process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while process.poll() is None:  # noqa: ASYNC110 - a process tells nobody when it ends
                    await asyncio.sleep(0.02)
        code = -signal.SIGKILL if process.poll() is None else process.returncode
        self.kill()
        return code

    def workers(self) -> list[int]:
        """The process ids of its workers, but for those that have ended."""
        assert self._process is not None
        workers = []
        for child in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            # Its other child keeps track of what multiprocessing shares.
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    workers.append(int(child))
        return workers

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)
