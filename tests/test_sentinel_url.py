"""The URL of a store behind Sentinel: each part of it, and one clear line for each mistake."""

import pytest

from tracker.sentinel_url import SentinelUrl


def test_every_part_has_its_place() -> None:
    url = SentinelUrl.parse("rediss+sentinel://us%3Aer:p%40ss@h1:1,h2,[::1]:65535,[fe80::2]/my.master-1/15?a=%26&b=")
    assert url == SentinelUrl(
        tls=True,
        username="us:er",
        password="p@ss",
        sentinels=(("h1", 1), ("h2", 26379), ("::1", 65535), ("fe80::2", 26379)),
        master="my.master-1",
        database=15,
        parameters=(("a", "&"), ("b", "")),
    )


def test_what_is_not_there_has_a_default() -> None:
    assert SentinelUrl.parse("redis+sentinel://h/m") == SentinelUrl(
        False, None, None, (("h", 26379),), "m", 0, parameters=()
    )
    assert SentinelUrl.parse("redis+sentinel://:pw@h/m")[1:3] == (None, "pw")
    assert SentinelUrl.parse("redis+sentinel://me@h/m")[1:3] == ("me", None)


PLACES = "must list the sentinels as host or host:port"
MASTER = "must name the master"
DATABASE = "must name its database by a number"
PARAMETERS = "must have its parameters as name=value"
ENCODING = "with special characters in passwords percent-encoded"


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("", PLACES),
        ("/m", PLACES),
        ("h,/m", PLACES),
        ("h,,i/m", PLACES),
        ("h:/m", PLACES),
        ("h:0/m", PLACES),
        ("h:65536/m", PLACES),
        ("h:p/m", PLACES),
        ("::1/m", PLACES),
        ("h i/m", PLACES),
        ("h;i/m", PLACES),
        ("h", MASTER),
        ("h/", MASTER),
        ("h//0", MASTER),
        ("h/my master", MASTER),
        ("h/m/", DATABASE),
        ("h/m/x", DATABASE),
        ("h/m/-1", DATABASE),
        ("h/m/0/1", DATABASE),
        ("h/m/0?x", PARAMETERS),
        ("h/m?x=1&", PARAMETERS),
        (":p#w@h/m", ENCODING),
        (":p/w@h/m", ENCODING),
        (":p@w@h/m", ENCODING),
        (":p?w@h/m", ENCODING),
        ("h/m?sentinel_password=p@w", ENCODING),
    ],
)
def test_a_mistake_is_told_in_one_line(rest: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        SentinelUrl.parse(f"redis+sentinel://{rest}")
    assert "\n" not in str(refused.value)
    assert refused.value.__context__ is None or refused.value.__suppress_context__
