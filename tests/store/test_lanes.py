"""Lanes: so many at once, and how long the others wait."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tracker.errors import StoreUnavailable
from tracker.store.lanes import Lanes


async def settle() -> None:
    """Until everybody has gone as far as he gets."""
    for _ in range(20):
        await asyncio.sleep(0)


class Users:
    """Each takes a lane and keeps it until it is told what comes of it: nothing, or an error."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.inside: list[int] = []
        self.outcomes: dict[int, asyncio.Future[None]] = {}

    def come(self, number: int) -> asyncio.Task[None]:
        self.outcomes[number] = asyncio.get_running_loop().create_future()
        return asyncio.create_task(self._use(number))

    async def leave(self, number: int, error: Exception | None = None) -> None:
        if error is None:
            self.outcomes[number].set_result(None)
        else:
            self.outcomes[number].set_exception(error)
        await settle()

    async def _use(self, number: int) -> None:
        async with self.lanes.turn():
            self.inside.append(number)
            await self.outcomes[number]


@pytest.fixture
def users() -> Users:
    return Users(Lanes(2))


async def test_so_many_at_once_and_the_others_in_the_order_of_their_coming(users: Users) -> None:
    tasks = [users.come(number) for number in range(5)]
    await settle()
    assert users.inside == [0, 1]
    await users.leave(1)
    assert users.inside == [0, 1, 2]
    for number in (0, 2, 3, 4):
        await users.leave(number)
    await asyncio.gather(*tasks)
    assert users.inside == [0, 1, 2, 3, 4]


async def test_who_waits_while_nobody_gets_an_answer_is_refused_at_once(users: Users) -> None:
    tasks = [users.come(number) for number in range(9)]
    await settle()
    await users.leave(0, StoreUnavailable("no answer"))
    outcomes = await asyncio.gather(*tasks[2:], return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"the store did not answer those who came before"}
    assert users.inside == [0, 1]
    later = users.come(9)
    await settle()
    assert users.inside == [0, 1, 9], "who comes afterwards sees for himself"
    for number in (1, 9):
        await users.leave(number)
    await asyncio.gather(later, *tasks, return_exceptions=True)


async def test_as_long_as_others_get_answers_nobody_is_refused(users: Users) -> None:
    tasks = [users.come(number) for number in range(4)]
    await settle()
    await users.leave(1)
    await users.leave(0, StoreUnavailable("no answer"))
    assert users.inside == [0, 1, 2, 3]
    users.lanes.answered()
    await users.leave(2, StoreUnavailable("no answer"))
    tasks.append(users.come(4))
    await settle()
    assert users.inside == [0, 1, 2, 3, 4]
    for number in (3, 4):
        await users.leave(number)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_leaves_the_line_or_his_lane_keeps_nobody(users: Users) -> None:
    tasks = [users.come(number) for number in range(5)]
    await settle()
    for number in (2, 0):
        tasks[number].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[number]
    await settle()
    assert users.inside == [0, 1, 3]
    for number in (1, 3, 4):
        await users.leave(number)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert users.inside == [0, 1, 3, 4]


async def test_patience_has_an_end() -> None:
    users = Users(Lanes(1, patience=0.01))
    first = users.come(0)
    await settle()
    with pytest.raises(StoreUnavailable, match="no turn within"):
        await users.come(1)
    await users.leave(0)
    await first
    async with users.lanes.turn():
        pass
