"""Agents that talk, for the tests on real Ray: they do what a task's payload or a message's body says."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from ray_agents import GATE_S, note, until_open

import flowray as fr
from flowray.errors import AskDeadlock


def same(answer: Any) -> Any:
    """An answer, with what an error of it has to say as plain data."""
    if isinstance(answer, AskDeadlock):
        return {"cycle": list(answer.cycle)}
    return {"error": type(answer).__name__, "text": str(answer)} if isinstance(answer, fr.FlowrayError) else answer


@fr.agent(capabilities={"async"}, topics={"news"}, slots=2)
class Talker:
    """Async code."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        return await getattr(self, f"run_{task.payload['do']}")(task.payload, ctx)

    async def run_ask(self, payload: dict[str, Any], ctx: fr.Context) -> Any:
        if "file" in payload:
            note(payload["file"], "asks")
        return await self._ask(ctx, payload["of"], payload["body"])

    async def run_publish(self, payload: dict[str, Any], ctx: fr.Context) -> Any:
        return await ctx.publish(payload["topic"], payload["body"], message_id=payload.get("id", ""))

    async def run_send(self, payload: dict[str, Any], ctx: fr.Context) -> None:
        await ctx.send(payload["to"], payload["body"])

    async def run_flood(self, payload: dict[str, Any], ctx: fr.Context) -> int:
        """Send many; note how many had room when the first had none."""
        noted = False
        for number in range(payload["count"]):
            sending = ctx.send(payload["to"], payload["body"])
            if not sending.done and not noted:
                noted = True
                note(payload["file"], str(number))
            await sending
        note(payload["file"], "all")
        return int(payload["count"])

    async def run_ask_until(self, payload: dict[str, Any], ctx: fr.Context) -> list[int]:
        """Ask again and again until a file appears: how often, of which process."""
        pids, count = set(), 0
        deadline = time.monotonic() + GATE_S
        while not os.path.exists(payload["gate"]):  # noqa: PTH110 - in a loop that is to be quick
            assert time.monotonic() < deadline, "nobody opened the gate"
            pids.add((await ctx.ask(payload["of"], {"do": "who"}))["pid"])
            count += 1
            if count == payload["note_at"]:
                note(payload["file"], "asking")
            await asyncio.sleep(0.001)
        return [count, *pids]

    async def run_publish_until(self, payload: dict[str, Any], ctx: fr.Context) -> int:
        """Publish 0, 1, 2 and so on until a file appears: how many."""
        count = 0
        deadline = time.monotonic() + GATE_S
        while not os.path.exists(payload["gate"]):  # noqa: PTH110
            assert time.monotonic() < deadline, "nobody opened the gate"
            await ctx.publish(payload["topic"], count)
            count += 1
            await asyncio.sleep(0.02)
        return count

    async def _ask(self, ctx: fr.Context, of: str, body: Any) -> Any:
        try:
            return await ctx.ask(of, body)
        except fr.FlowrayError as error:
            return same(error)

    async def on_message(self, message: fr.Message, ctx: fr.Context) -> Any:
        body = message.body
        if not isinstance(body, dict):
            self.heard.append(body)
            return None
        do = body["do"]
        if do == "echo":
            return body["value"]
        if do == "who":
            return {"agent": ctx.agent_id, "pid": os.getpid(), "asker": message.sender}
        if do == "heard":
            return self.heard
        if do == "count":
            return len(self.heard)
        if do == "along":  # ask the next of a chain
            of, *rest = body["chain"]
            return await self._ask(ctx, of, {"do": "along", "chain": rest} if rest else {"do": "who"})
        if do == "wait":
            note(body["file"], "waits")
            await asyncio.to_thread(until_open, body["gate"])
            return "waited"
        if do == "raise":
            raise ValueError(body["text"])
        raise NotImplementedError(do)


@fr.agent(topics={"news"}, reentrant=True)
class Crowd(Talker):
    """Hears others while it waits for answers."""

    async def on_message(self, message: fr.Message, ctx: fr.Context) -> Any:
        if isinstance(message.body, dict) and message.body["do"] == "all":
            return await asyncio.gather(*(self._ask(ctx, one, {"do": "who"}) for one in message.body["of"]))
        return await super().on_message(message, ctx)


@fr.agent(capabilities={"sync"}, topics={"news"})
class SyncTalker:
    """Sync code: everything in threads."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def run(self, task: fr.Task, ctx: fr.Context) -> Any:
        payload = task.payload
        if payload["do"] == "ask":
            return ctx.ask(payload["of"], payload["body"]).result()
        return ctx.publish(payload["topic"], payload["body"]).result()

    def on_message(self, message: fr.Message, ctx: fr.Context) -> Any:
        if not isinstance(message.body, dict):
            self.heard.append(message.body)
            return None
        if message.body["do"] == "heard":
            return self.heard
        if message.body["do"] == "who":
            return {"agent": ctx.agent_id, "pid": os.getpid(), "asker": message.sender}
        return message.body["value"]


@fr.agent(capabilities={"bridged"}, topics={"orders"})
class Clerk:
    """Takes orders, and publishes what it did with them."""

    def __init__(self) -> None:
        self.orders: list[list[str]] = []

    async def run(self, task: fr.Task, ctx: fr.Context) -> int:
        return int(await ctx.publish(task.payload["topic"], task.payload["body"], message_id=task.payload["id"]))

    async def on_message(self, message: fr.Message, ctx: fr.Context) -> Any:
        if message.topic != "orders":
            return self.orders
        self.orders.append([message.message_id, message.body.decode()])
        await ctx.publish("done", f"did {message.body.decode()}", message_id=f"done-{len(self.orders)}")
        return None
