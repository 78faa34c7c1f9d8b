"""Batcher: what waits goes out together, in order, in time, and nobody's trouble becomes another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tracker.errors import StoreError, StoreFault, StoreUnavailable
from tracker.store.batching import BATCH, CAPACITY, Batcher, Operation, Reply

PATIENT = 60.0
IMPATIENT = 0.02


class Line:
    """A carrier whose flights stay in the air until the test lands them; each operation is a name."""

    def __init__(self, timeout: float = PATIENT) -> None:
        self.flights: list[list[str]] = []
        self.aborted: list[str] = []
        self.closed = False
        self.batcher = Batcher(self, timeout)
        self._landing: Callable[[list[Reply] | StoreError], None] | None = None
        self._replies: list[asyncio.Future[Reply]] = []

    def carry(self, operations: list[Operation], landing: Callable[[list[Reply] | StoreError], None]) -> None:
        assert self._landing is None, "one flight at a time"
        self.flights.append([str(name) for (name,) in operations])
        self._landing = landing

    def abort(self, why: str) -> None:
        self.aborted.append(why)
        self.land(StoreUnavailable(why))

    async def close(self) -> None:
        self.closed = True

    def submit(self, *names: str) -> list[asyncio.Future[Reply]]:
        replies = [self.batcher.submit([name]) for name in names]
        self._replies += replies
        return replies

    def leave(self) -> None:
        """Nobody waits any more, or time would run out during a later test, which shares the loop."""
        for reply in self._replies:
            reply.cancel()

    def land(self, outcome: StoreError | None = None) -> None:
        """Every operation is answered with its own name, or all with the error."""
        landing, self._landing = self._landing, None
        assert landing is not None, "nothing is in the air"
        landing([["landed", name] for name in self.flights[-1]] if outcome is None else outcome)


async def settle() -> None:
    """Everybody who can go on does."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    yield line
    line.leave()


@pytest.fixture
async def hurried() -> AsyncIterator[Line]:
    line = Line(IMPATIENT)
    yield line
    line.leave()


# --- who flies when ---------------------------------------------------------------------------------------------------


async def test_a_lone_call_takes_off_in_the_next_turn_of_the_loop(line: Line) -> None:
    (reply,) = line.submit("a")
    await asyncio.sleep(0)
    assert line.flights == [["a"]]
    line.land()
    assert await reply == ["landed", "a"]


async def test_what_comes_in_one_turn_takes_off_together(line: Line) -> None:
    replies = line.submit("a", "b")
    await settle()
    assert line.flights == [["a", "b"]]
    line.land()
    assert await asyncio.gather(*replies) == [["landed", "a"], ["landed", "b"]]


async def test_what_comes_during_a_flight_goes_out_together_in_the_next(line: Line) -> None:
    replies = line.submit("a")
    await settle()
    replies += line.submit("b")
    await settle()
    replies += line.submit("c", "d")
    await settle()
    assert line.flights == [["a"]]
    line.land()
    assert line.flights == [["a"], ["b", "c", "d"]]
    line.land()
    assert await asyncio.gather(*replies) == [["landed", name] for name in "abcd"]


async def test_a_flight_carries_128_at_most_and_order_is_kept(line: Line) -> None:
    names = [str(number) for number in range(2 * BATCH + 1)]
    replies = line.submit(*names)
    await settle()
    for _ in range(3):
        line.land()
    assert [len(flight) for flight in line.flights] == [128, 128, 1]
    assert [name for flight in line.flights for name in flight] == names
    assert await asyncio.gather(*replies) == [["landed", name] for name in names]


async def test_after_the_last_flight_the_next_call_takes_off_again(line: Line) -> None:
    for name in ("a", "b"):
        (reply,) = line.submit(name)
        await settle()
        line.land()
        assert await reply == ["landed", name]
    assert line.flights == [["a"], ["b"]]


async def test_a_carrier_that_lands_at_once_keeps_everybodys_reply() -> None:
    """As a lost connection does, which is known before the call is sent."""

    class Grounded(Line):
        def carry(self, operations: list[Operation], landing: Callable[[list[Reply] | StoreError], None]) -> None:
            super().carry(operations, landing)
            self.land(StoreUnavailable("no connection"))

    line = Grounded()
    outcomes = await asyncio.gather(*line.submit(*(str(n) for n in range(3 * BATCH))), return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"no connection"}
    assert len(line.flights) == 3


# --- who gives up -----------------------------------------------------------------------------------------------------


async def test_a_caller_that_gave_up_before_take_off_is_not_sent(line: Line) -> None:
    line.submit("a")
    await settle()
    gave_up, stays = line.submit("b", "c")
    gave_up.cancel()
    line.land()
    line.land()
    assert line.flights == [["a"], ["c"]]
    assert await stays == ["landed", "c"]


async def test_a_flight_of_none_but_those_who_gave_up_does_not_take_off(line: Line) -> None:
    (first,) = line.submit("a")
    await settle()
    for reply in line.submit("b", "c"):
        reply.cancel()
    line.land()
    assert line.flights == [["a"]]
    assert await first == ["landed", "a"]
    (later,) = line.submit("d")
    await settle()
    line.land()
    assert await later == ["landed", "d"]


@pytest.mark.parametrize("error", [None, StoreUnavailable("away")])
async def test_a_caller_that_gives_up_in_flight_disturbs_nobody(line: Line, error: StoreError | None) -> None:
    first, second = line.submit("a", "b")
    await settle()
    first.cancel()
    line.land(error)
    if error is None:
        assert await second == ["landed", "b"]
    else:
        with pytest.raises(StoreUnavailable, match="away"):
            await second


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreFault("odd")])
async def test_the_error_of_a_flight_reaches_all_its_passengers_and_nobody_else(line: Line, error: StoreError) -> None:
    early = line.submit("a", "b")
    await settle()
    (late,) = line.submit("c")
    line.land(error)
    raised = await asyncio.gather(*early, return_exceptions=True)
    assert [(type(one), str(one)) for one in raised] == [(type(error), str(error))] * 2
    assert raised[0] is not raised[1], "each caller adds a traceback of its own"
    line.land()
    assert await late == ["landed", "c"]


async def test_a_carrier_that_cannot_take_off_fails_its_passengers_and_not_the_next(line: Line) -> None:
    """A defect of ours shows at once, not as silence until the deadline."""
    carry = line.carry

    def breaks(operations: list[Operation], landing: Callable[[list[Reply] | StoreError], None]) -> None:
        raise TypeError("no operation")

    line.carry = breaks  # type: ignore[method-assign]
    (broken,) = line.submit("a")
    await settle()
    assert broken.done()
    with pytest.raises((StoreError, TypeError)):
        await broken
    line.carry = carry  # type: ignore[method-assign]
    (whole,) = line.submit("b")
    await settle()
    line.land()
    assert await whole == ["landed", "b"]


# --- time -------------------------------------------------------------------------------------------------------------


async def test_a_flight_that_does_not_land_in_time_is_given_up(hurried: Line) -> None:
    replies = hurried.submit("a", "b")
    for reply in replies:
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.02 s"):
            await reply
    assert len(hurried.aborted) == 1
    (later,) = hurried.submit("c")
    await settle()
    hurried.land()
    assert await later == ["landed", "c"]


async def test_who_waits_for_take_off_waits_no_longer_than_who_flies(hurried: Line) -> None:
    """The time-out of a call counts from its arrival, however many flights are before it."""
    (flying,) = hurried.submit("flies")
    await settle()
    waiting = hurried.submit(*(str(number) for number in range(3 * BATCH)))
    began = asyncio.get_running_loop().time()
    outcomes = await asyncio.gather(flying, *waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert asyncio.get_running_loop().time() - began < 10 * IMPATIENT


async def test_a_flight_whose_passengers_all_gave_up_is_still_given_up(hurried: Line) -> None:
    """Or nobody behind it would ever fly."""
    (reply,) = hurried.submit("a")
    await settle()
    reply.cancel()
    await asyncio.sleep(3 * IMPATIENT)
    assert len(hurried.aborted) == 1


async def test_a_reply_in_time_leaves_no_timer_behind_that_harms_the_next(hurried: Line) -> None:
    for number in range(5):
        (reply,) = hurried.submit(str(number))
        await settle()
        hurried.land()
        assert await reply == ["landed", str(number)]
        await asyncio.sleep(IMPATIENT / 2)
    assert hurried.aborted == []


# --- room -------------------------------------------------------------------------------------------------------------


async def test_too_many_waiting_are_refused_at_once(line: Line) -> None:
    line.submit("flies")
    await settle()
    line.submit(*(str(number) for number in range(CAPACITY)))
    with pytest.raises(StoreUnavailable, match="too many"):
        line.submit("one too many")
    line.land()
    assert len(line.flights[1]) == BATCH
    line.submit("fits again")


async def test_those_who_gave_up_leave_their_room_to_others(line: Line) -> None:
    """A store that was away for a while must not leave a full waiting room behind."""
    line.submit("flies")
    await settle()
    for reply in line.submit(*(str(number) for number in range(CAPACITY))):
        reply.cancel()
    line.land()
    (reply,) = line.submit("fits")
    await settle()
    line.land()
    assert await reply == ["landed", "fits"]


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_closing_fails_those_who_wait_and_lets_the_flight_come_home(line: Line) -> None:
    (flying,) = line.submit("a")
    await settle()
    (waiting,) = line.submit("b")
    closing = asyncio.create_task(line.batcher.close())
    await settle()
    assert not closing.done()
    with pytest.raises(StoreUnavailable, match="stopping"):
        await waiting
    line.land()
    await closing
    assert await flying == ["landed", "a"]
    assert line.flights == [["a"]]
    assert line.closed


async def test_closing_does_not_wait_for_ever_for_a_flight(hurried: Line) -> None:
    (flying,) = hurried.submit("a")
    await settle()
    await hurried.batcher.close()
    with pytest.raises(StoreUnavailable):
        await flying


async def test_closing_without_a_flight_is_nothing(line: Line) -> None:
    await line.batcher.close()
    assert line.closed
