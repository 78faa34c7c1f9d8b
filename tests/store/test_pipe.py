"""Pipe: replies reach their calls in order, and what cannot be matched to a call ends the connection."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis.asyncio import BlockingConnectionPool

from tests.redis_server import RedisServer
from tests.store.pools import pool_for
from tests.store.puppet import Answer, Puppet, echo, resp, running_puppet
from tracker.errors import StoreUnavailable
from tracker.store.pipe import Pipe


@pytest.fixture
async def puppet() -> AsyncIterator[Puppet]:
    async with running_puppet() as running:
        yield running


@pytest.fixture
async def pool(puppet: Puppet) -> AsyncIterator[BlockingConnectionPool]:
    pool = pool_for(puppet.url)
    yield pool
    await pool.aclose()


@pytest.fixture
async def pipe(pool: BlockingConnectionPool) -> AsyncIterator[Pipe]:
    pipe = Pipe(pool)
    await pipe.open()
    yield pipe
    await pipe.close()


def send(pipe: Pipe, *words: str) -> asyncio.Future[Any]:
    """A call that the puppet takes for a script's, with these words as its own arguments."""
    landed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    pipe.call(("EVALSHA", "digest", 0, "prefix", 0, 0, *words), landed.set_result)
    return landed


def anything(reply: Any) -> bool:
    return True


async def lands(landed: asyncio.Future[Any]) -> Any:
    async with asyncio.timeout(10):
        return await landed


async def lost(pipe: Pipe) -> None:
    async with asyncio.timeout(10):
        while pipe.ready:  # noqa: ASYNC110 - the pipe tells nobody but its callers, and there are none
            await asyncio.sleep(0)


# --- replies ----------------------------------------------------------------------------------------------------------


async def test_calls_go_out_without_waiting_and_replies_come_back_in_order(pipe: Pipe, puppet: Puppet) -> None:
    everybody_called = asyncio.Event()

    async def hold(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        await everybody_called.wait()
        return resp(own)

    puppet.answer = hold
    landed = [send(pipe, str(number)) for number in range(100)]
    everybody_called.set()
    assert [await lands(one) for one in landed] == [[b"%d" % number] for number in range(100)]


async def test_a_reply_may_come_in_any_number_of_packets(pipe: Pipe, puppet: Puppet) -> None:
    async def answer_in_crumbs(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        reply = resp([own, b"\r\n$3\r\n", [b"", own]])
        for byte in reply:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        return b""

    puppet.answer = answer_in_crumbs
    landed = [send(pipe, "a" * 20), send(pipe, "b" * 20)]
    for one, word in zip(landed, (b"a" * 20, b"b" * 20), strict=True):
        assert await lands(one) == [[word], b"\r\n$3\r\n", [b"", [word]]]


async def test_many_replies_may_come_in_one_packet(pipe: Pipe, puppet: Puppet) -> None:
    held: list[bytes] = []

    async def answer_at_last(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        held.append(resp(own))
        return b"".join(held) if own == [b"last"] else b""

    puppet.answer = answer_at_last
    landed = [send(pipe, word) for word in ("first", "second", "last")]
    assert [await lands(one) for one in landed] == [[b"first"], [b"second"], [b"last"]]


async def test_a_large_reply_arrives_whole(pipe: Pipe) -> None:
    word = "x" * 3_000_000
    assert await lands(send(pipe, word)) == [word.encode()]


async def test_an_error_of_redis_is_a_reply_like_others(pipe: Pipe, puppet: Puppet) -> None:
    async def refuse_some(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        return b"-WRONGTYPE no\r\n" if own == [b"bad"] else resp(own)

    puppet.answer = refuse_some
    bad, good = send(pipe, "bad"), send(pipe, "good")
    error = await lands(bad)
    assert isinstance(error, hiredis.ReplyError)
    assert str(error) == "WRONGTYPE no"
    assert await lands(good) == [b"good"]
    assert pipe.ready


async def test_text_and_bytes_and_numbers_are_sent_as_they_are(pipe: Pipe) -> None:
    landed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    pipe.call(("EVALSHA", "digest", 0, "p", 0, 0, "🦄\0", b"\xff\r\n", -12), landed.set_result)
    assert await lands(landed) == ["🦄\0".encode(), b"\xff\r\n", b"-12"]


async def test_commands_that_are_packed_already_land_together(pipe: Pipe) -> None:
    words = [b"first", b"second", b"third"]
    packed = b"".join(resp([b"EVALSHA", b"digest", b"0", b"p", b"0", b"0", word]) for word in words)
    before = send(pipe, "before")
    landed: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    pipe.call_many(packed, len(words), anything, landed.set_result)
    after = send(pipe, "after")
    assert await lands(landed) == [[word] for word in words]
    assert (await lands(before), await lands(after)) == ([b"before"], [b"after"])


async def test_commands_that_were_packed_together_are_lost_together(pipe: Pipe, puppet: Puppet) -> None:
    async def leave(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        if own == [b"first"]:
            return resp(own)
        puppet.hang_up()
        raise ConnectionError

    puppet.answer = leave
    packed = b"".join(resp([b"EVALSHA", b"digest", b"0", b"p", b"0", b"0", word]) for word in (b"first", b"second"))
    landed: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    pipe.call_many(packed, 2, anything, landed.set_result)
    first, second = await lands(landed)
    assert first == [b"first"] or isinstance(first, StoreUnavailable)
    assert isinstance(second, StoreUnavailable)


async def test_commands_packed_for_a_closed_pipe_land_at_once(pool: BlockingConnectionPool) -> None:
    landed: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    Pipe(pool).call_many(b"", 3, anything, landed.set_result)
    assert {type(outcome) for outcome in await lands(landed)} == {StoreUnavailable}


async def test_a_pipe_with_an_encoding_lands_text(pool: BlockingConnectionPool) -> None:
    pipe = Pipe(pool, encoding="utf-8")
    await pipe.open()
    assert await lands(send(pipe, "🦄\0")) == ["🦄\0"]
    await pipe.close()


# --- what ends the connection -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["in one packet", "a moment later"])
async def test_a_reply_that_nobody_asked_for_ends_the_connection(pipe: Pipe, puppet: Puppet, apart: bool) -> None:
    async def answer_twice(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        if not apart:
            return resp(own) + resp([b"stale"])
        asyncio.get_running_loop().call_later(0.01, writer.write, resp([b"stale"]))
        return resp(own)

    puppet.answer = answer_twice
    assert await lands(send(pipe, "first")) == [b"first"]
    await lost(pipe)
    await pipe.open()
    assert await lands(send(pipe, "second")) == [b"second"]
    assert puppet.connections == 2


@pytest.mark.parametrize(
    "noise", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\xff\r\n", b"*99999999999999999999\r\n", b"$-7\r\n"]
)
async def test_what_is_no_reply_ends_the_connection(pipe: Pipe, puppet: Puppet, noise: bytes) -> None:
    async def babble(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        return noise

    puppet.answer = babble
    landed = [send(pipe, "first"), send(pipe, "second")]
    for one in landed:
        assert isinstance(await lands(one), StoreUnavailable)
    assert not pipe.ready


@pytest.mark.parametrize("how", ["reset", "half-closed", "in the middle of a reply"])
async def test_a_lost_connection_fails_all_calls_under_way_and_is_opened_anew(
    pipe: Pipe, puppet: Puppet, how: str
) -> None:
    async def leave(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        puppet.answer = echo
        if how == "reset":
            puppet.hang_up()
        else:
            writer.write(resp([b"half of it"])[:-5] if how == "in the middle of a reply" else b"")
            writer.write_eof()
        raise ConnectionError

    puppet.answer = leave
    landed = [send(pipe, "first"), send(pipe, "second")]
    for one in landed:
        assert isinstance(await lands(one), StoreUnavailable)
    assert not pipe.ready
    await pipe.open()
    assert await lands(send(pipe, "third")) == [b"third"]


async def test_giving_up_fails_all_calls_under_way_and_no_late_reply_lands_on_another(
    pipe: Pipe, puppet: Puppet
) -> None:
    given_up = asyncio.Event()

    async def answer_late(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        if own == [b"slow"]:
            await given_up.wait()
        return resp(own)

    puppet.answer = answer_late
    landed = [send(pipe, "slow"), send(pipe, "behind it")]
    await asyncio.sleep(0.01)
    pipe.abort("too slow")
    assert [str(await lands(one)) for one in landed] == ["too slow", "too slow"]
    await pipe.open()
    next_call = send(pipe, "next")
    given_up.set()
    assert await lands(next_call) == [b"next"]
    assert await lands(send(pipe, "last")) == [b"last"]


async def test_a_call_that_cannot_be_sent_shifts_nobodys_reply(pipe: Pipe) -> None:
    before = send(pipe, "before")
    unsent: list[Any] = []
    for word in ("\ud800", None):
        with pytest.raises((TypeError, ValueError)):
            pipe.call(("EVALSHA", "digest", 0, "p", 0, 0, word), unsent.append)  # type: ignore[arg-type]
    after = send(pipe, "after")
    assert await lands(before) == [b"before"]
    assert await lands(after) == [b"after"]
    assert unsent == []


async def test_the_end_of_the_last_connection_does_not_end_the_next(
    pipe: Pipe, pool: BlockingConnectionPool, puppet: Puppet
) -> None:
    """The loop tells of an aborted connection's end a turn later: the pool may have had another at hand by then."""
    spare = await pool.get_connection()  # type: ignore[no-untyped-call]
    await pool.release(spare)
    pipe.abort("first")
    await pipe.open()
    assert pipe.ready
    landed = send(pipe, "word")
    assert await lands(landed) == [b"word"]
    assert pipe.ready


async def test_a_landing_may_call_again(pipe: Pipe) -> None:
    """As the batcher does: the next flight takes off while the last one lands."""
    replies: list[Any] = []
    done = asyncio.Event()

    def again(reply: Any) -> None:
        replies.append(reply)
        if len(replies) < 10:
            pipe.call(("EVALSHA", "digest", 0, "p", 0, 0, str(len(replies))), again)
        else:
            done.set()

    pipe.call(("EVALSHA", "digest", 0, "p", 0, 0, "0"), again)
    async with asyncio.timeout(10):
        await done.wait()
    assert replies == [[b"%d" % number] for number in range(10)]


async def test_a_reply_that_does_not_fit_ends_the_connection_before_the_next_is_shifted(
    pipe: Pipe, puppet: Puppet
) -> None:
    """Seen only when all had come, the last reply to one caller would have landed on the next."""
    puppet.answer = late_by_one()
    packed = b"".join(resp([b"EVALSHA", b"digest", b"0", b"p", b"0", b"0", word]) for word in (b"first", b"second"))
    first: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    second: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    pipe.call_many(packed, 2, lambda reply: isinstance(reply, list), first.set_result)
    pipe.call_many(packed, 2, lambda reply: isinstance(reply, list), second.set_result)
    for replies in (await lands(first), await lands(second)):
        assert [type(reply) for reply in replies] == [StoreUnavailable] * 2
    assert not pipe.ready


def late_by_one() -> Answer:
    """Something else first, and then every reply as it should be."""
    begun = False

    async def answer(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        nonlocal begun
        noise, begun = b"" if begun else b"+OK\r\n", True
        return noise + resp(own)

    return answer


async def test_a_pipe_that_retires_lands_what_is_under_way_and_then_connects_anew(pipe: Pipe, puppet: Puppet) -> None:
    everybody_called = asyncio.Event()

    async def hold(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        await everybody_called.wait()
        return resp(own)

    puppet.answer = hold
    landed = [send(pipe, "first"), send(pipe, "second")]
    pipe.retire("too old")
    assert not pipe.ready
    opening = asyncio.create_task(pipe.open())
    await asyncio.sleep(0.01)
    assert not opening.done()
    everybody_called.set()
    assert [await lands(one) for one in landed] == [[b"first"], [b"second"]]
    await lands(opening)
    assert await lands(send(pipe, "third")) == [b"third"]
    assert puppet.connections == 2


async def test_a_pipe_with_nothing_under_way_retires_at_once(pipe: Pipe, puppet: Puppet) -> None:
    pipe.retire("too old")
    await lands(asyncio.ensure_future(pipe.open()))
    assert await lands(send(pipe, "word")) == [b"word"]
    assert puppet.connections == 2


# --- opening and closing ----------------------------------------------------------------------------------------------


async def test_many_who_open_at_once_get_one_connection(pool: BlockingConnectionPool, puppet: Puppet) -> None:
    pipe = Pipe(pool)
    assert puppet.connections == 0
    await asyncio.gather(*(pipe.open() for _ in range(20)))
    assert pipe.ready
    assert puppet.connections == 1
    await pipe.close()


async def test_a_call_on_a_closed_pipe_lands_at_once(pool: BlockingConnectionPool) -> None:
    pipe = Pipe(pool)
    assert isinstance(await lands(send(pipe, "word")), StoreUnavailable)


async def test_opening_to_nobody_is_unavailable(puppet: Puppet) -> None:
    pool = pool_for("redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable):
        await Pipe(pool).open()
    await pool.aclose()


async def test_closing_fails_the_calls_under_way(pool: BlockingConnectionPool, puppet: Puppet) -> None:
    async def stay_silent(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        await asyncio.sleep(60)
        return b""

    puppet.answer = stay_silent
    pipe = Pipe(pool)
    await pipe.open()
    landed = send(pipe, "word")
    await pipe.close()
    assert isinstance(await lands(landed), StoreUnavailable)
    assert not pipe.ready


async def test_lost_connections_do_not_use_the_pool_up(puppet: Puppet) -> None:
    pool = pool_for(puppet.url, timeout=0.5)
    pipe = Pipe(pool)
    for number in range(100):
        await pipe.open()
        assert await lands(send(pipe, str(number))) == [b"%d" % number]
        pipe.abort("again")
    await pipe.close()
    await pool.aclose()


async def test_giving_up_while_it_opens_does_not_use_the_pool_up(puppet: Puppet) -> None:
    """At whatever moment, after whatever state the last connection was left in, and with others in need of the pool."""
    pool = pool_for(puppet.url, timeout=0.5)
    pipe = Pipe(pool)

    async def borrow() -> None:
        await pool.release(await pool.get_connection())  # type: ignore[no-untyped-call]

    for number in range(300):
        others = [asyncio.create_task(borrow()) for _ in range(number % 4)]
        opening = asyncio.create_task(pipe.open())
        for _ in range(number % 30):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, *others, return_exceptions=True)
        if number % 3 == 0:
            pipe.abort("again")
    await pipe.open()
    assert await lands(send(pipe, "word")) == [b"word"]
    assert len(pool._in_use_connections) == 1
    await pipe.close()
    assert len(pool._in_use_connections) == 0
    await pool.aclose()


async def test_the_driver_still_has_what_the_pipe_takes_over(redis_server: RedisServer) -> None:
    """`_writer` is private to redis-py: a release that renames it must not come unnoticed."""
    pool = pool_for(redis_server.url)
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    assert isinstance(connection._writer, asyncio.StreamWriter)
    assert isinstance(connection._writer.transport, asyncio.Transport)
    await pool.release(connection)
    await pool.aclose()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that only we trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("CI"):
            pytest.fail("needs openssl")
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path / "pair.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", path, "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "cert.pem").read_text())
    return path


async def test_tls_will_do(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with running_puppet(tls) as puppet:
        place = puppet.url.replace("redis://", "rediss://")
        pool = pool_for(f"{place}?ssl_ca_certs={certificate}")
        pipe = Pipe(pool)
        await pipe.open()
        word = "x" * 300_000
        assert await lands(send(pipe, word)) == [word.encode()]
        await pipe.close()
        await pool.aclose()

        stranger = pool_for(place)
        with pytest.raises(StoreUnavailable, match="certificate"):
            await Pipe(stranger).open()
        await stranger.aclose()
