"""Session ids: proper UUIDs of version 7 that say where their session lives."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.store.ids import MAX_SHARDS, make_tail, shard_of_id, shard_of_text

SOME_ID = "0199b1f2-6c1e-7003-9a55-0c3f3f8f2a10"

shard_numbers = st.integers(0, MAX_SHARDS - 1)


@given(shard_numbers)
def test_an_id_is_a_version_7_uuid_and_tells_its_shard(shard: int) -> None:
    session_id = f"0199b1f2-6c1e-{make_tail(shard)}"
    parsed = uuid.UUID(session_id)
    assert (str(parsed), parsed.version, parsed.variant) == (session_id, 7, uuid.RFC_4122)
    assert shard_of_id(session_id, MAX_SHARDS) == shard


def test_tails_do_not_repeat_and_all_their_free_bits_vary() -> None:
    tails = [int(make_tail(0).replace("-", "")[4:], 16) for _ in range(2000)]
    assert len(set(tails)) == 2000
    union = intersection = tails[0]
    for tail in tails:
        union |= tail
        intersection &= tail
    assert union == 2**64 - 1 - 2**62, "the variant is 10, every other bit is one somewhere"
    assert intersection == 2**63


@pytest.mark.parametrize(
    "text",
    [
        "",
        "t1",
        "ce3e8b3e-57a5-4e3e-8a3a-7f2f9a3ee2f1",
        SOME_ID.upper(),
        SOME_ID + "\n",
        " " + SOME_ID,
        SOME_ID.replace("-", ""),
        "{" + SOME_ID + "}",
        SOME_ID.replace("9a55", "ca55"),
        SOME_ID.replace("7003", "8003"),
        SOME_ID.replace("0", "\u0660"),
        SOME_ID[:-1],
        SOME_ID + "0",
    ],
)
def test_what_the_tracker_cannot_have_made_has_no_shard(text: str) -> None:
    assert shard_of_id(SOME_ID, 4) == 3
    assert shard_of_id(text, 4) is None


def test_an_id_from_a_store_with_more_shards_has_none_here() -> None:
    assert shard_of_id(SOME_ID, 3) is None


def test_where_a_task_lives_never_changes() -> None:
    """Pods of other versions, and sessions made long ago, rely on these very numbers."""
    placed = {text: shard_of_text(text, 4096) for text in ("t1", "t2", "", "a\0b", "🦄", "x" * 512)}
    assert placed == {"t1": 3639, "t2": 3981, "": 0, "a\0b": 2161, "🦄": 2592, "x" * 512: 3421}


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, MAX_SHARDS))
def test_every_text_has_a_shard(text: str, shards: int) -> None:
    assert 0 <= shard_of_text(text, shards) < shards


def test_tasks_spread_evenly() -> None:
    placed = Counter(shard_of_text(f"task-{number}", 16) for number in range(16_000))
    assert len(placed) == 16
    assert max(placed.values()) < 1200
