"""The real HAProxy with deploy/haproxy.cfg, but for its ports, and a name server that finds the pods for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

__all__ = ["CONFIGURATION", "NameServer", "needs_haproxy", "running_haproxy"]

CONFIGURATION = Path(__file__).parent.parent / "deploy" / "haproxy.cfg"

needs_haproxy = pytest.mark.skipif(
    sys.platform != "linux" or (shutil.which("haproxy") is None and not os.environ.get("CI")),
    reason="needs HAProxy (Debian: apt-get install haproxy) and the many loopback addresses of Linux",
)


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with `addresses`, as Docker's does for a service's replicas."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, peer: tuple[str | int, int]) -> None:
        end = data.index(b"\0", 12) + 5  # the name's closing zero, then type and class
        (kind,) = struct.unpack_from("!H", data, end - 4)
        addresses = self.addresses if kind == 1 else []
        header = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = (b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(a) for a in addresses)
        self.transport.sendto(header + data[12:end] + b"".join(records), peer)


@asynccontextmanager
async def running_haproxy(
    directory: Path, port: int, *addresses: str, connections: int = 100
) -> AsyncIterator[tuple[str, NameServer]]:
    """Its URL and its name server, for pods that listen on ``port`` of the addresses.

    ``connections``: so many at once, which takes twice as many open files; the default is within any machine's limit.
    """
    transport, names = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    names.addresses = [*addresses]
    with contextlib.closing(transport), socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        text = CONFIGURATION.read_text()
        text = _replaced(text, "bind :3013", f"bind fd@{listener.fileno()}", times=1)
        name_server = f"nameserver test 127.0.0.1:{transport.get_extra_info('sockname')[1]}"
        text = _replaced(text, "parse-resolv-conf", name_server, times=1)
        text = _replaced(text, "api:3013", f"api:{port}", times=2)
        text = _replaced(text, "maxconn 10000", f"maxconn {connections}", times=1)
        file = directory / "haproxy.cfg"
        file.write_text(text)
        process = await asyncio.create_subprocess_exec(
            "haproxy", "-db", "-f", file, pass_fds=[listener.fileno()], stdout=asyncio.subprocess.DEVNULL
        )
        listener.close()
        try:
            yield url, names
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _replaced(text: str, old: str, new: str, *, times: int) -> str:
    assert text.count(old) == times, f"{old!r} is not {times} times in {CONFIGURATION.name}"
    return text.replace(old, new)
