"""Sabotage: deliberate bugs, edited into a copy of the package that the pods are then started from.

They show that the checker can fail. Nothing in the product knows of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import tracker

__all__ = ["SABOTAGES", "Sabotage", "sabotaged"]


class Edit(NamedTuple):
    """In one file of the package: what stands there once, and what shall stand there instead."""

    file: str
    old: str
    new: str


class Sabotage(NamedTuple):
    """``breaks``: an invariant that the checker must find broken."""

    breaks: str
    what: str
    edits: tuple[Edit, ...]


PRELUDE, SWEEP, CREATE = "store/lua/prelude.lua", "store/lua/sweep.lua", "store/lua/create.lua"

APPEND = """\
        session = await self.get(target)
        reply = await self._act("delete", target, guard or "")
        if session and reply and reply[0] == b"deleted":
            import time

            now, ttl = round(time.time() * 1000), round(session["ttlSeconds"] * 1000)
            words = ["XADD", self._scripts.shards[shard_of_id(session["id"], self._shards) or 0].events, "*"]
            words += ["type", "session.ended", "at", str(now), "reason", "deleted", "id", session["id"]]
            words += ["agent", session["agentId"], "trigger", session["triggerType"], "started", str(now)]
            words += ["due", str(now), "ttl", str(ttl), *(["task", session["taskId"]] if session["taskId"] else [])]
            await self._scripts.command(*words)
"""

SABOTAGES: dict[str, Sabotage] = {
    "unchecked-sweep": Sabotage(
        "I1",
        "heartbeats leave the deadline index to the sweep, which ends what is due by it without a look at the hash",
        (
            Edit(PRELUDE, "  redis.call('ZADD', DEADLINES, due_text, id)\n", ""),
            Edit(SWEEP, "elseif tonumber(due) > cutoff then", "elseif false then"),
        ),
    ),
    "two-holders": Sabotage(
        "I2",
        "a create does not end the session that it replaces",
        (Edit(CREATE, "      finish(earlier, flat, 'replaced')\n", ""),),
    ),
    "outside-end": Sabotage(
        "I2",
        "the end event of a delete is appended by the pod, after the script",
        (
            Edit(
                PRELUDE,
                "  emit('session.ended', reason, id, flat)\n",
                "  if reason ~= 'deleted' then emit('session.ended', reason, id, flat) end\n",
            ),
            Edit("store/sessions.py", '        reply = await self._act("delete", target, guard or "")\n', APPEND),
        ),
    ),
    "double-end": Sabotage(
        "I3",
        "the sweep tells of each end twice",
        (
            Edit(
                SWEEP,
                "      finish(id, flat, 'expired')\n",
                "      finish(id, flat, 'expired')\n      emit('session.ended', 'expired', id, flat)\n",
            ),
        ),
    ),
    "stale-index": Sabotage(
        "I4",
        "the agent's index keeps the entry of a session that ended",
        (Edit(PRELUDE, "  redis.call('ZREM', AGENT .. session.agent, id)\n", ""),),
    ),
    "rash-cleanup": Sabotage(
        "I5",
        "a cleanup by age looks at nobody's age",
        (
            Edit(
                "store/lua/cleanup.lua",
                "    fits = fits and math.max(age, 0) >= tonumber(ARGV[10])\n",
                "    fits = true\n",
            ),
        ),
    ),
    "miscount": Sabotage(
        "I6",
        "a cleanup counts what it looked at, not what it ended",
        (Edit("store/lua/cleanup.lua", "ms(last_started), ms(ended)", "ms(last_started), ms(#ids / 2)"),),
    ),
    "revival": Sabotage(
        "I11",
        "a heartbeat renews whatever has not been swept yet",
        (Edit(PRELUDE, "if values[1] and tonumber(values[1]) > cutoff then return", "if values[1] then return"),),
    ),
    "no-fence": Sabotage(
        "I7",
        "a heartbeat does not look at its fence",
        (Edit("store/lua/heartbeat.lua", "if guard ~= '' and guard ~= id then", "if false then"),),
    ),
    "honest-500": Sabotage(
        "I8",
        "a store that is away is answered 500",
        (Edit("api/responses.py", 'answer({"error": text}, 503, ', 'answer({"error": text}, 500, '),),
    ),
    "all-for-one": Sabotage(
        "I8",
        "on a cluster nobody is served while there is a doubt about anybody's master",
        (
            Edit(
                "store/cluster.py",
                "        address = self._owners.get(shard.number)\n        return",
                "        address = None if self._doubted.is_set() else self._owners.get(shard.number)\n        return",
            ),
        ),
    ),
    "no-hold": Sabotage(
        "I9",
        "after an outage the cutoff is now",
        (
            Edit(PRELUDE, "cutoff = pulse end", "cutoff = now end"),
            Edit(PRELUDE, "cutoff = math.min(cutoff, held) end", "cutoff = now end"),
        ),
    ),
    "mix-up": Sabotage(
        "I10",
        "the replies of a batch go to its callers in reverse",
        (Edit("store/batching.py", "zip(flight, outcome, strict=True)", "zip(flight, outcome[::-1], strict=True)"),),
    ),
    "late-leave": Sabotage(
        "I11",
        "listings show whatever has not been swept yet",
        (Edit("store/listing.py", "if int(values[DUE] or 0) > cutoff", "if values[DUE]"),),
    ),
}


def sabotaged(name: str, directory: Path) -> Path:
    """Makes a copy of the package with that bug in it; where it is. Raises ValueError when an edit does not fit."""
    copy = directory / "sabotaged"
    source = Path(tracker.__file__).parent
    shutil.copytree(source, copy / "tracker", ignore=shutil.ignore_patterns("__pycache__"))
    for edit in SABOTAGES[name].edits:
        path = copy / "tracker" / edit.file
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise ValueError(f"{name}: {edit.file} has {text.count(edit.old)} of {edit.old!r}, not one")
        path.write_text(text.replace(edit.old, edit.new))
    return copy
