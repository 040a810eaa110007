"""Agents hear that their results are on disk: with the next task, or by themselves soon."""

import asyncio
from typing import Any, cast

from flowray.mesh.peer import Peer
from flowray.runtime import messages
from flowray.runtime.acknowledging import Acknowledgements
from flowray.runtime.messages import Acknowledge


class Process:
    """A peer that remembers what it was sent."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def send_anyway(self, body: bytes) -> None:
        self.told.append(messages.decode_to_agent(body))


async def test_what_goes_along_with_a_task_is_not_said_again() -> None:
    acknowledgements, process = Acknowledgements(), Process()
    acknowledgements.on_disk(cast(Peer, process), "a-0", 3)
    acknowledgements.on_disk(cast(Peer, process), "a-0", 7)
    assert process.told == [], "it would wake the process for nothing else"
    acknowledgements.tell("a-0")
    assert process.told == [Acknowledge("a-0", 7)]
    await asyncio.sleep(0.25)
    assert process.told == [Acknowledge("a-0", 7)]


async def test_an_agent_without_another_task_hears_of_it_all_the_same() -> None:
    acknowledgements, process, other = Acknowledgements(), Process(), Process()
    acknowledgements.on_disk(cast(Peer, process), "a-0", 1)
    acknowledgements.on_disk(cast(Peer, other), "b-0", 2)
    acknowledgements.tell("c-0")
    async with asyncio.timeout(30):
        while not (process.told and other.told):
            await asyncio.sleep(0.01)
    assert (process.told, other.told) == ([Acknowledge("a-0", 1)], [Acknowledge("b-0", 2)])
    acknowledgements.on_disk(cast(Peer, process), "a-0", 5)
    async with asyncio.timeout(30):
        while len(process.told) < 2:
            await asyncio.sleep(0.01)


async def test_an_agent_that_came_back_elsewhere_hears_where_it_is_now() -> None:
    acknowledgements, former, present = Acknowledgements(), Process(), Process()
    acknowledgements.on_disk(cast(Peer, former), "a-0", 40)
    acknowledgements.on_disk(cast(Peer, present), "a-0", 1)
    acknowledgements.tell("a-0")
    assert (former.told, present.told) == ([], [Acknowledge("a-0", 1)])
