"""Waiting for RabbitMQ to confirm what was published to it, without a server."""

import asyncio
from typing import Any, cast

import pytest
from aiormq.channel import Channel

from flowray.bridges.rabbit import _answers


class Closed:
    """A channel that is closed after a moment, or never."""

    def __init__(self) -> None:
        self.is_closed = False


async def confirmed() -> None:
    await asyncio.sleep(0)


async def refused() -> None:
    raise ValueError("not this one")


async def forgotten() -> None:
    """A confirm that nobody will ever tell of."""
    await asyncio.get_running_loop().create_future()


async def test_every_answer_is_given_in_order() -> None:
    channel: Any = Closed()
    answers = await _answers(cast(Channel, channel), [confirmed(), refused(), confirmed()])
    assert answers[0] is None
    assert isinstance(answers[1], ValueError)
    assert answers[2] is None
    assert await _answers(cast(Channel, channel), []) == []


async def test_a_confirm_that_was_forgotten_when_the_channel_closed_is_not_waited_for() -> None:
    channel: Any = Closed()
    asyncio.get_running_loop().call_later(0.1, lambda: setattr(channel, "is_closed", True))
    async with asyncio.timeout(30):
        answers = await _answers(cast(Channel, channel), [confirmed(), forgotten()])
    assert answers[0] is None
    assert isinstance(answers[1], asyncio.CancelledError)


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    channel: Any = Closed()
    before = asyncio.all_tasks()
    waiting = asyncio.ensure_future(_answers(cast(Channel, channel), [forgotten(), forgotten()]))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
