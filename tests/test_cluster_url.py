"""The URL of a store on a Redis Cluster: each part of it, and one clear line for each mistake."""

import pytest

from tracker.cluster_url import ClusterUrl


def test_every_part_has_its_place() -> None:
    url = ClusterUrl.parse("rediss+cluster://us%3Aer:p%40ss@h1:1,h2,[::1]:65535,[fe80::2]/0?a=%26&b=")
    assert url == ClusterUrl(
        tls=True,
        username="us:er",
        password="p@ss",
        nodes=(("h1", 1), ("h2", 6379), ("::1", 65535), ("fe80::2", 6379)),
        parameters=(("a", "&"), ("b", "")),
    )


def test_what_is_not_there_has_a_default() -> None:
    assert ClusterUrl.parse("redis+cluster://h") == ClusterUrl(False, None, None, (("h", 6379),), parameters=())
    assert ClusterUrl.parse("redis+cluster://h/") == ClusterUrl.parse("redis+cluster://h/0")
    assert ClusterUrl.parse("redis+cluster://:pw@h")[1:3] == (None, "pw")
    assert ClusterUrl.parse("redis+cluster://me@h")[1:3] == ("me", None)


PLACES = "must list the nodes as host or host:port"
DATABASE = "must name no database"
PARAMETERS = "must have its parameters as name=value"
ENCODING = "with special characters in passwords percent-encoded"


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("", PLACES),
        ("h,", PLACES),
        ("h,,i", PLACES),
        ("h:", PLACES),
        ("h:0", PLACES),
        ("h:65536", PLACES),
        ("h:p", PLACES),
        ("::1", PLACES),
        ("h i", PLACES),
        ("h;i", PLACES),
        ("h/1", DATABASE),
        ("h/0/1", DATABASE),
        ("h/name", DATABASE),
        ("h?x", PARAMETERS),
        ("h?x=1&", PARAMETERS),
        (":p#w@h", ENCODING),
        (":p/w@h", ENCODING),
        (":p@w@h", ENCODING),
        (":p?w@h", ENCODING),
    ],
)
def test_a_mistake_is_told_without_a_word_of_the_url(rest: str, says: str) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        ClusterUrl.parse("redis+cluster://" + rest)
    assert says in str(caught.value)
    assert "p#w" not in str(caught.value)
