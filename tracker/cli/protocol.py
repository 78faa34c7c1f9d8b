"""Protocol: uvicorn's, but nobody fills the memory with a head without end, and what is no HTTP is answered in JSON."""

from __future__ import annotations

import asyncio
import json
import re
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["HEAD_BYTES", "Protocol"]

HEAD_BYTES = 64 * 1024
"""Most that may come without a request getting on: a request line with its headers, trailers, a chunk's extensions."""

_BAD_REQUEST = "400 Bad Request", "Not a well-formed HTTP request"
_TOO_LARGE = "431 Request Header Fields Too Large", f"The request line and headers may have {HEAD_BYTES} bytes at most"
_OTHER_PROTOCOL = "400 Bad Request", "No other protocol is spoken here than HTTP"
_UPGRADE = re.compile(rb"\r\n[Uu][Pp][Gg][Rr][Aa][Dd][Ee]:")
"""The header, wherever it begins. JSON holds no line that begins so."""
NEWCOMER_SECONDS = 1
"""How old a connection without a request must be for nobody to be about to send one."""


class Protocol(HttpToolsProtocol):
    """One connection. A refusal ends it: nobody knows where the next request would begin."""

    _fruitless = 0
    """Bytes received since a request last got on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made = self.loop.time()

    def shutdown(self) -> None:
        """Ends it when nothing is under way on it: for a caller who has only just connected his first request is."""
        patience = self._made + NEWCOMER_SECONDS - self.loop.time()
        asked = cast("RequestResponseCycle | None", self.cycle)
        if asked is None and patience > 0:
            self.loop.call_later(patience, super().shutdown)
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        self._fruitless += len(data)
        # An offer to speak another protocol (Java's client, `curl --http2`) may be passed over (RFC 9110, 7.8). But the
        # parser takes it as accepted, and the request's body for the other protocol: so the header is made one of none.
        super().data_received(_UPGRADE.sub(b"\r\nx-grade:", data))
        if self._fruitless > HEAD_BYTES:
            self._refuse(*_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._fruitless = 0
        if self.parser.should_upgrade():  # by CONNECT, or a header that came in two pieces: what follows is no request
            self._refuse(*_OTHER_PROTOCOL)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._fruitless = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._fruitless = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*_BAD_REQUEST)

    def _refuse(self, status: str, error: str) -> None:
        if self.transport.is_closing():
            return
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:  # else it would stand in the middle of another answer
            body = json.dumps({"error": error})
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(f"HTTP/1.1 {status}\r\n{head}{body}".encode())
        self.transport.close()
