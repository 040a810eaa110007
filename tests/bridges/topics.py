"""flowray's topics as the tests have them: they record, and can refuse, block and hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flowray.bridges import OnMessage, TopicMessage


class FakeSubscription:
    def __init__(self, topics: FakeTopics, topic: str, on_message: OnMessage) -> None:
        self._topics, self._topic, self.on_message = topics, topic, on_message

    async def close(self) -> None:
        if self in self._topics.subscriptions.get(self._topic, []):
            self._topics.subscriptions[self._topic].remove(self)


class FakeTopics:
    def __init__(self) -> None:
        self.taken: list[TopicMessage] = []  # in the order in which they were taken over
        self.subscriptions: dict[str, list[FakeSubscription]] = {}
        self.open = asyncio.Event()  # clear: no room, publishers wait
        self.open.set()
        self.waiting = 0  # publishers that wait for room
        self.refuse: Callable[[TopicMessage], Exception | None] = lambda message: None

    async def publish(self, topic: str, body: bytes, *, message_id: str) -> None:
        message = TopicMessage(topic, body, message_id)
        error = self.refuse(message)
        if error is not None:
            raise error
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        self.taken.append(message)

    async def subscribe(self, topic: str, on_message: OnMessage) -> FakeSubscription:
        subscription = FakeSubscription(self, topic, on_message)
        self.subscriptions.setdefault(topic, []).append(subscription)
        return subscription

    async def send(self, topic: str, bodies: dict[str, bytes], publisher: str = "tests") -> None:
        """To the subscribers, all side by side; returns when all of them have confirmed."""
        (subscription,) = self.subscriptions[topic]
        await asyncio.gather(
            *(subscription.on_message(TopicMessage(topic, body, key, publisher)) for key, body in bodies.items())
        )

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.taken]

    @property
    def ids(self) -> list[str]:
        return [message.message_id for message in self.taken]
