"""Agents of the two AutoGen sides, as its documentation writes them: routed agents, messages as dataclasses.

Its messages travel as JSON between processes, which has no bytes, so their body is text of the same size.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from autogen_core import AgentId, MessageContext, RoutedAgent, message_handler, try_get_known_serializers_for_type

from bench.workers.loads import answers_per_s, by_the_clock, one_at_a_time

ECHO, ASKER, NOOP = "echo", "asker", "noop"  # types of agents
KEY = "default"


@dataclass
class Body:
    text: str


@dataclass
class Go:
    settings: str  # JSON


@dataclass
class Figures:
    text: str  # JSON


class Echo(RoutedAgent):
    def __init__(self) -> None:
        super().__init__("gives back what it gets")

    @message_handler
    async def on_body(self, message: Body, ctx: MessageContext) -> Body:
        return message


class Noop(RoutedAgent):
    def __init__(self) -> None:
        super().__init__("does nothing")

    @message_handler
    async def on_body(self, message: Body, ctx: MessageContext) -> Body:
        return Body("")  # its gRPC runtime cannot send None, and who asked would wait for ever


class Asker(RoutedAgent):
    def __init__(self) -> None:
        super().__init__("asks echo")

    @message_handler
    async def on_go(self, message: Go, ctx: MessageContext) -> Figures:
        settings = json.loads(message.settings)
        ask = asking(self.send_message, AgentId(ECHO, KEY))
        figures = await one_at_a_time(ask, settings)
        figures["one_way_per_s"] = await answers_per_s(ask, settings)
        return Figures(json.dumps(figures | await by_the_clock(ask, settings)))


def asking(send: Callable[..., Awaitable[Any]], to: AgentId) -> Callable[[bytes], Awaitable[object]]:
    async def ask(body: bytes) -> object:
        return await send(Body(body.decode()), to)

    return ask


def know_messages(runtime: Any) -> None:
    """A runtime serialises what some agent of its own handles, and must be told of the rest."""
    for kind in (Body, Go, Figures):
        runtime.add_message_serializer(try_get_known_serializers_for_type(kind))
