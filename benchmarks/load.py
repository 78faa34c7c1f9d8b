"""The requests that wrk is to send: small Lua scripts, one per kind of call.

Each makes its requests by string concatenation, from a counter, so that every run visits sessions all over the store,
and the same load goes to the tracker and to its baselines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from benchmarks import sessions
from benchmarks.servers import LEASES, Server

__all__ = ["Load", "etcd_keepalives", "heartbeats", "lifecycles", "provider_sessions"]

BASE = "/api/active-sessions"
STRIDE = 611_953
"""From one task to the next: a prime, so that a run meets all of them, and never neighbours."""

DONE = """
function done(summary, latency)
  local errors = summary.errors
  local form = '\\nbenchmark {"requests": %d, "microseconds": %d, "bytes": %d, "connect": %d, "read": %d, "write": %d, '
    .. '"status": %d, "timeout": %d, "p50": %.1f, "p99": %.1f, "p999": %.1f, "max": %.1f}\\n'
  io.write(string.format(form, summary.requests, summary.duration, summary.bytes, errors.connect, errors.read,
    errors.write, errors.status, errors.timeout, latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9), latency.max))
end
"""
"""The closing line that `benchmarks.wrk` reads; latencies are in microseconds."""


@dataclass(frozen=True)
class Load:
    """``script``: for wrk, which gives its ``init`` the number to start from. ``sample``: one of its requests.

    Every answer must be as long as the one to the sample; None where their lengths differ.
    """

    script: str
    sample: bytes | None = None


def heartbeats(server: Server, tasks: int) -> Load:
    """Heartbeats of the sessions 0 to `tasks` - 1, by task."""
    head, tail = _request("PUT", f"{BASE}/heartbeat/{sessions.TASK_PREFIX}", server)
    return Load(_walk(tasks, f"{_quoted(head)} .. hex(n) .. {_quoted(tail)}"), _sample(head, tail))


def provider_sessions(server: Server, tasks: int) -> Load:
    """Provider sessions, a new one each time, for the sessions 0 to `tasks` - 1."""
    body = json.dumps({"providerSessionId": "c7a9e1d2-0b54-4f6e-8f0a-"}).removesuffix('"}')
    length = len(body) + 12 + len('"}')
    head, tail = _request("PUT", f"{BASE}/provider-session/{sessions.TASK_PREFIX}", server, length)
    request = " .. ".join((_quoted(head), "hex(n)", _quoted(tail + body), "hex(sent)", _quoted('"}')))
    return Load(_walk(tasks, request), _sample(head, tail + body + f'{0:012x}"}}'))


def lifecycles(server: Server, connections: int) -> Load:
    """Creates and, four times as many requests later as there are connections, the delete of the same task.

    So no delete overtakes its create on another connection, and every request does what it is there for.
    """
    body = json.dumps(sessions.body(0))
    before, _, after = body.partition(sessions.task(0))
    create_head, create_tail = _request("POST", BASE, server, len(body))
    delete_head, delete_tail = _request("DELETE", f"{BASE}/by-task/{sessions.TASK_PREFIX}", server)
    create = _quoted(create_head + create_tail + before + sessions.TASK_PREFIX)
    return Load(
        f"""{_PREAMBLE}
local function create(n) return {create} .. hex(n) .. {_quoted(after)} end
local function delete(n) return {_quoted(delete_head)} .. hex(n) .. {_quoted(delete_tail)} end
local lag = {4 * connections}
function request()
  local i = sent
  sent = sent + 1
  if i < lag then return create(start + i) end
  i = i - lag
  if i % 2 == 0 then return delete(start + i / 2) end
  return create(start + lag + (i - 1) / 2)
end
{DONE}"""
    )


def etcd_keepalives(server: Server) -> Load:
    """Keepalives of the leases that an etcd of ours holds."""
    body = f"string.format('{{\"ID\": %d}}', {LEASES.start} + n)"
    head, tail = _request("POST", "/v3/lease/keepalive", server, len(json.dumps({"ID": LEASES.start})))
    return Load(_walk(len(LEASES), f"{_quoted(head + tail)} .. {body}"))


_PREAMBLE = """
local start, sent = 0, 0
function init(args) start = tonumber(args[1]) end
local function hex(n) return string.format('%012x', n) end
"""


def _walk(count: int, request: str) -> str:
    """A script that makes a request from n, which walks over 0 to `count` - 1, and from how many it has sent."""
    return f"""{_PREAMBLE}
function request()
  sent = sent + 1
  local n = (start + sent * {STRIDE}) % {count}
  return {request}
end
{DONE}"""


def _request(method: str, path: str, server: Server, body_length: int | None = None) -> tuple[str, str]:
    """What comes before and after the end of the path."""
    lines = [
        " HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        *(f"{name}: {value}" for name, value in server.headers.items()),
    ]
    if body_length is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {body_length}"]
    return f"{method} {path}", "\r\n".join([*lines, "", ""])


def _sample(head: str, tail: str) -> bytes:
    return f"{head}{0:012x}{tail}".encode()


def _quoted(text: str) -> str:
    """A Lua string: JSON's escapes, of which ASCII text needs no others."""
    return json.dumps(text)
