"""Single requests on bare sockets, for what a client library would blur: the time and the exact length of an answer."""

from __future__ import annotations

import re
import socket

from benchmarks.servers import Server

__all__ = ["WireError", "answer_length", "read_all"]

TIMEOUT_SECONDS = 60
BUFFER_BYTES = 1024 * 1024


class WireError(Exception):
    """The answer is not what it should be; the message has its beginning."""


def answer_length(server: Server, request: bytes) -> int:
    """The length of the answer to a request, in bytes, with its head. Raises WireError when it is not a 2xx."""
    with _connect(server) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += _receive(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        _check(answer)
        if length is None:
            raise WireError(f"an answer without a length: {answer[:200]!r}")
        missing = int(length[1]) - len(body)
        while missing > 0:
            missing -= len(_receive(connection))
        return len(head) + 4 + int(length[1])


def read_all(server: Server, path: str) -> bytearray:
    """The whole answer to a GET, head, chunk lengths and all, as it comes over the wire. Raises WireError."""
    headers = {"Host": "127.0.0.1", "Connection": "close", **server.headers}
    lines = (f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()))
    answer = bytearray()
    with _connect(server) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        while part := connection.recv(BUFFER_BYTES):
            answer += part
    _check(answer)
    return answer


def _connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), TIMEOUT_SECONDS)


def _receive(connection: socket.socket) -> bytes:
    part = connection.recv(BUFFER_BYTES)
    if not part:
        raise WireError("the connection was closed before the answer was complete")
    return part


def _check(answer: bytes | bytearray) -> None:
    if not re.match(rb"HTTP/1\.1 2\d\d ", answer):
        raise WireError(f"not a 2xx: {bytes(answer[:200])!r}")
