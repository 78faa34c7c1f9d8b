"""Where the tracker is and with which key: arguments before the environment; what cannot be used is said at once."""

from __future__ import annotations

import sys

import pytest

from tests.client.conftest import OpenClient
from tracker.client import Misconfigured, TrackerClient
from tracker.client.endpoint import Endpoint


def test_arguments_go_before_the_environment_and_that_before_the_default() -> None:
    environ = {"TRACKER_URL": "http://e:1/", "TRACKER_API_KEY": "k"}
    assert Endpoint.find(None, None, environ) == Endpoint("http://e:1", "k")
    assert Endpoint.find("https://a/below/", "own", environ) == Endpoint("https://a/below", "own")
    assert Endpoint.find(None, None, {"TRACKER_URL": "", "TRACKER_API_KEY": ""}) == Endpoint(
        "http://localhost:3013", None
    )


def test_the_clients_look_at_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKER_URL", "http://127.0.0.1:9")
    assert TrackerClient().url == "http://127.0.0.1:9"


UNUSABLE = [
    "",
    "localhost:3013",
    "ftp://a",
    "http://",
    "http://a?b",
    "http://a#b",
    "http://a?",
    "http://a#",
    "http://a:x",
    "http://a:0",
    "http://a:99999",
    "http://a..b",
    "http://" + "a" * 64 + ".b",
    "http://xn--zzzzzz",
    "http://a/\udcff",
    "http://a/" + "a" * 70_000,
]


@pytest.mark.parametrize("url", UNUSABLE)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        Endpoint.find(url, None, {})
    assert str(refused.value).startswith("The tracker's URL ")


@pytest.mark.parametrize(
    "url", ["http://a.b.", "http://[::1]:1", "http://[fe80::1%25lo]", "http://a_b:65535", "http://ß"]
)
def test_a_url_of_any_kind_of_host_is_taken(url: str) -> None:
    assert Endpoint.find(url, None, {}).url.startswith("http://")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("HTTP_PROXY", "127.0.0.1:9x"),
        ("HTTP_PROXY", "gopher://me:secret@a"),
        ("SSL_CERT_FILE", "/no/such/file"),
    ],
)
async def test_what_the_environment_says_of_proxies_and_certificates_and_cannot_be_used_is_refused_at_once(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # what an installation may lack
    monkeypatch.setenv(variable, value)
    with pytest.raises(Misconfigured) as refused:
        open_client("http://127.0.0.1:9")
    assert "secret" not in str(refused.value)


def test_a_user_in_the_url_would_be_sent_in_place_of_the_key() -> None:
    with pytest.raises(Misconfigured) as refused:
        Endpoint.find("http://me:secret@a", "k", {})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        Endpoint.find(None, key, {})
    assert not key or key not in str(refused.value)
    assert "topsecret" not in repr(Endpoint.find(None, "topsecret", {}))
