"""Requests, their fields named as on the wire, and the texts that test how exactly texts are kept."""

from __future__ import annotations

from typing import Any

from tracker.models import Cleanup, CreateSession, ListEvents, ListSessions

__all__ = ["ODD_TEXTS", "a_cleanup", "a_list", "a_run", "some_events"]

ODD_TEXTS = {
    "nul": "a\0b",
    "only nul": "\0",
    "emoji": "🦄👩‍👩‍👧‍👦🏳️‍🌈",
    "right to left": "שלום‮ مرحبا",
    "longest": "x" * 512,
    "longest of four bytes": "😀" * 512,
    "slash": "a/b",
    "percent": "%2F%00%",
    "spaces": "  a  ",
    "newlines": "a\r\n$5\r\nb",
    "hash tag": "{other:3}:sessions",
    "glob": "*[a]?",
    "number": "-1.5e3",
    "bound": "(+inf",
    "field name": "due",
    "lua": "'..os.time()..\"]]--",
    "decomposed": "e\u0301",
    "last of unicode": "\U0010ffff\ufeff\uffff",
}


def a_run(task: str | None = "t1", agent: str = "a1", **fields: Any) -> CreateSession:
    """A run to register."""
    return CreateSession.model_validate({"agentId": agent, "triggerType": "task_assigned", "taskId": task, **fields})


def a_list(**fields: Any) -> ListSessions:
    """Which sessions to list."""
    return ListSessions.model_validate(fields)


def some_events(**fields: Any) -> ListEvents:
    """Which part of the feed."""
    return ListEvents.model_validate(fields)


def a_cleanup(**fields: Any) -> Cleanup:
    """Which sessions to end."""
    return Cleanup.model_validate(fields)
