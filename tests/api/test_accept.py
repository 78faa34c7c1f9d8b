"""Content negotiation: what a client likes best of what there is."""

from __future__ import annotations

import pytest

from tracker.api.accept import negotiate

PAGE, STREAM = "application/json", "text/event-stream"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", PAGE),
        ("*/*", PAGE),
        ("application/json", PAGE),
        ("application/*", PAGE),
        ("text/event-stream", STREAM),
        ("TEXT/Event-Stream", STREAM),
        ("text/*", STREAM),
        ("text/event-stream; charset=utf-8", STREAM),
        ("text/event-stream, */*;q=0.1", STREAM),
        ("text/event-stream, application/json", PAGE),
        ("application/json;q=0.9, text/event-stream", STREAM),
        ("application/json, text/event-stream;q=0.9", PAGE),
        ("application/json;q=0.5,text/event-stream;q=0.501", STREAM),
        ("*/*, application/json;q=0", STREAM),
        ("*/*, text/event-stream;q=0", PAGE),
        ("text/html, */*;q=0.1", PAGE),
        ("text/*;q=0.2, */*;q=0.1", STREAM),
        ("text/event-stream;q=2", STREAM),
        ("text/event-stream ; q = 0.3 , application/json;q=0.2", STREAM),
        ("nonsense", PAGE),
        (",,;,", PAGE),
        ("*", PAGE),
        ("text/event-stream, nonsense", STREAM),
        ("text/html", PAGE),
        ("*/*;q=0", PAGE),
        ("text/event-stream;q=0", PAGE),
    ],
)
def test_the_best_liked_is_chosen_and_a_page_where_they_are_equal(accept: str, chosen: str) -> None:
    assert negotiate(accept, (PAGE, STREAM)) == chosen
