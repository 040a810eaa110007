"""Agents and drivers that talk to one another on real Ray, and what becomes of it when processes die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talking_agents import Crowd, SyncTalker, Talker

import flowray as fr
from flowray.errors import AgentUnreachable, AskFailed, PayloadError

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0
CROWD = 24


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    with start_runtime("talking", tiers__secondary__agents_per_block=8, tiers__secondary__warm=0) as runtime:
        for number in range(4):  # classes of their own, so that tasks can be given to one of them
            runtime.agents.add(Talker, name=f"talker{number}")
        for number in range(2):
            runtime.agents.add(SyncTalker, name=f"sync{number}")
        runtime.wait_ready()
        yield runtime


def do(rt: fr.Runtime, agent: str, what: str, **more: Any) -> Any:
    """A task for one agent."""
    return rt.submit({"do": what, **more}, agent=agent.rpartition("-")[0])


# ── asking, sending, publishing ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("asker", ["talker0-0", "sync0-0"])
@pytest.mark.parametrize("asked", ["talker1-0", "sync1-0"])
def test_async_and_sync_agents_ask_one_another(rt: fr.Runtime, asker: str, asked: str) -> None:
    found = do(rt, asker, "ask", of=asked, body={"do": "who"}).result(WAIT_S)
    pids = {agent.agent_id: agent.pid for agent in rt.agents}
    assert found == {"agent": asked, "pid": pids[asked], "asker": asker}


def test_an_agent_may_ask_itself_from_run(rt: fr.Runtime) -> None:
    assert do(rt, "talker0-0", "ask", of="talker0-0", body={"do": "echo", "value": 1}).result(WAIT_S) == 1


@pytest.mark.parametrize("value", [None, b"raw", {"a": [1, 2.5, "x"]}, (1, {2, 3})])
@pytest.mark.parametrize("agent", ["talker0-0", "sync0-0"])
def test_a_driver_asks_and_gets_what_it_gave(rt: fr.Runtime, agent: str, value: Any) -> None:
    assert rt.ask(agent, {"do": "echo", "value": value}).result(WAIT_S) == value

    async def ask() -> Any:
        return await rt.ask(agent, {"do": "echo", "value": value})

    assert asyncio.run(ask()) == value


def test_a_driver_hears_why_there_is_no_answer(rt: fr.Runtime) -> None:
    with pytest.raises(AgentUnreachable, match="nobody-0"):
        rt.ask("nobody-0", 1).result(WAIT_S)
    with pytest.raises(AskFailed, match=r"talker0-0.*ValueError: not this") as caught:
        rt.ask("talker0-0", {"do": "raise", "text": "not this"}).result(WAIT_S)
    assert caught.value.error_type == "ValueError"


@pytest.mark.parametrize("agent", ["talker1-0", "sync1-0"])
def test_what_a_driver_sends_arrives_in_order_and_once(rt: fr.Runtime, agent: str) -> None:
    before = len(rt.ask(agent, {"do": "heard"}).result(WAIT_S))
    for number in range(3_000):
        rt.send(agent, number).result(WAIT_S)
    assert rt.ask(agent, {"do": "heard"}).result(WAIT_S)[before:] == list(range(3_000))


def test_what_is_published_reaches_all_agents_of_all_classes_and_drivers(
    rt: fr.Runtime, eventually: Callable[..., Any]
) -> None:
    listeners = [f"talker{n}-0" for n in range(4)] + ["sync0-0", "sync1-0"]
    assert rt.publish("news", "from the driver").result(WAIT_S) == len(listeners)
    with rt.subscribe("news", "weather") as news, rt.subscribe("weather") as weather:
        published = do(rt, "talker0-0", "publish", topic="news", body="from an agent", id="n1").result(WAIT_S)
        assert published == len(listeners) + 1
        assert rt.publish("weather", "rain").result(WAIT_S) == 2
        got = {message.topic: message for message in (news.get(WAIT_S), news.get(WAIT_S))}  # of two senders: any order
        told = got["news"]
        assert (told.body, told.sender, told.message_id) == ("from an agent", "talker0-0", "n1")
        assert got["weather"].body == "rain"
        assert weather.get(WAIT_S).body == "rain"
        do(rt, "talker1-0", "send", to=news.id, body="to you alone").result(WAIT_S)
        told = news.get(WAIT_S)
        assert (told.body, told.sender, told.topic) == ("to you alone", "talker1-0", "")
    for agent in listeners:  # the first message to another process waits until that one is dialled
        eventually(lambda agent=agent: heard(rt, agent)[-2:] == ["from an agent", "from the driver"], agent)


def heard(rt: fr.Runtime, agent: str) -> list[str]:
    """What an agent was told in words, sorted: what comes from several senders has no order."""
    return sorted(one for one in rt.ask(agent, {"do": "heard"}).result(WAIT_S) if isinstance(one, str))


def test_nobody_hears_a_subscription_that_is_over(rt: fr.Runtime, eventually: Callable[..., Any]) -> None:
    with rt.subscribe("short") as short:
        assert rt.publish("short", 1).result(WAIT_S) == 1
        assert short.get(WAIT_S).body == 1
    assert [message.body for message in short] == []
    eventually(lambda: rt.publish("short", 2).result(WAIT_S) == 0, "the directory has forgotten it")


def test_a_message_that_is_too_large_says_what_the_limit_is_called(rt: fr.Runtime) -> None:
    with pytest.raises(PayloadError, match=r"2097152 bytes; the limit \(mesh\.talk\.message_bytes\) is 1048576"):
        rt.send("talker0-0", bytes(2 << 20))
    largest = bytes(1 << 20)
    assert rt.ask("talker0-0", {"do": "echo", "value": largest[:-100]}).result(WAIT_S) == largest[:-100]


def test_a_slow_receiver_holds_its_sender_up_and_gets_everything(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    """3,000 messages of 10 kB for an agent that handles none: the sender's await suspends after a window of them."""
    before = rt.ask("talker2-0", {"do": "count"}).result(WAIT_S)
    gate, body = tmp_path / "gate", "x" * 10_000
    blocked = rt.ask("talker2-0", {"do": "wait", "file": str(tmp_path / "said"), "gate": str(gate)})
    eventually(lambda: lines("said"), "the receiver stands still")
    flood = do(rt, "talker3-0", "flood", to="talker2-0", body=body, count=3_000, file=str(tmp_path / "sent"))
    eventually(lambda: lines("sent"), "the sender waits")
    with_room = int(lines("sent")[0])
    # What may be sent unasked for and what fits into a window, which is all that is held for one sender here.
    assert 64 * 1024 // 10_256 <= with_room <= (1 << 20) // 10_000 + 2
    assert do(rt, "talker3-0", "ask", of="talker1-0", body={"do": "echo", "value": 7}).result(WAIT_S) == 7
    assert lines("sent") == [str(with_room)], "it still waits"
    gate.touch()
    assert blocked.result(WAIT_S) == "waited"
    assert flood.result(WAIT_S) == 3_000
    # Asked by the sender, whose last messages are still on their way: what comes from others may overtake them.
    after = do(rt, "talker3-0", "ask", of="talker2-0", body={"do": "count"}).result(WAIT_S)
    assert after - before == 3_000


def test_a_circle_of_asks_is_named(rt: fr.Runtime) -> None:
    chain = ["talker1-0", "talker2-0", "talker0-0"]
    found = rt.ask("talker0-0", {"do": "along", "chain": chain}).result(WAIT_S)
    circle = found["cycle"]
    begin = circle.index("talker0-0")
    assert circle[begin:] + circle[:begin] == ["talker0-0", "talker1-0", "talker2-0"]
    assert (
        rt.ask("talker0-0", {"do": "along", "chain": ["talker1-0", "talker2-0"]}).result(WAIT_S)["agent"] == "talker2-0"
    )


def test_agents_added_later_are_known_to_all_at_once_and_each_asks_each(rt: fr.Runtime) -> None:
    rt.agents.add(Crowd, count=CROWD)
    rt.wait_ready()
    names = [f"crowd-{n}" for n in range(CROWD)]
    assert do(rt, "talker0-0", "ask", of="crowd-7", body={"do": "who"}).result(WAIT_S)["asker"] == "talker0-0"
    asks = [rt.ask(asker, {"do": "all", "of": [n for n in names if n != asker]}) for asker in names]
    for asker, asked in zip(names, asks, strict=True):
        found = asked.result(WAIT_S)
        assert [one["agent"] for one in found] == [n for n in names if n != asker]
        assert {one["asker"] for one in found} == {asker}
    assert len({one["pid"] for one in found}) == CROWD - 1


# ── when processes die ───────────────────────────────────────────────────────────────────────────────────────────────


def test_whoever_asked_a_killed_agent_is_told_and_its_next_life_answers(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    wait = {"do": "wait", "file": str(tmp_path / "said"), "gate": str(tmp_path / "gate")}
    mine = rt.ask("talker3-0", wait)
    eventually(lambda: len(lines("said")) == 1, "the driver's ask is being handled")
    theirs = do(rt, "talker0-0", "ask", of="talker3-0", body=wait, file=str(tmp_path / "asks"))
    eventually(lambda: lines("asks"), "an agent's ask is on its way")
    before = rt.ask("talker2-0", {"do": "who"}).result(WAIT_S)["pid"]
    rt.kill_agent("talker3-0")
    with pytest.raises(AgentUnreachable, match="talker3-0"):
        mine.result(WAIT_S)
    said = theirs.result(WAIT_S)
    assert said["error"] == "AgentUnreachable" and "talker3-0" in said["text"]
    rt.wait_ready()
    who = {"do": "who"}
    assert rt.ask("talker3-0", who).result(WAIT_S)["agent"] == "talker3-0"
    assert do(rt, "talker0-0", "ask", of="talker3-0", body=who).result(WAIT_S)["asker"] == "talker0-0"
    assert rt.ask("talker2-0", who).result(WAIT_S)["pid"] == before, "nobody else was touched"
    assert rt.publish("news", "after").result(WAIT_S) == len(rt.agents)


def test_talk_goes_on_without_a_coordinator_and_new_contacts_after_its_return(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    gate = tmp_path / "gate"
    who = {"do": "who"}
    rt.agents.add(SyncTalker, name="fresh", capabilities={"fresh"})
    rt.wait_ready()
    status = rt.status()
    with rt.subscribe("later") as later:
        asking = do(
            rt, "talker0-0", "ask_until", of="talker1-0", gate=str(gate), file=str(tmp_path / "said"), note_at=20
        )
        rt.ask("talker1-0", who).result(WAIT_S)
        eventually(lambda: lines("said"), "they talk")
        os.kill(status.pid, signal.SIGSTOP)  # there, and of no use
        for number in range(50):
            assert rt.ask("talker1-0", {"do": "echo", "value": number}).result(WAIT_S) == number
        with contextlib.suppress(ProcessLookupError):  # its keeper has ended it, as it does with whoever is stopped
            os.kill(status.pid, signal.SIGKILL)
        for number in range(50):
            assert rt.ask("talker1-0", {"do": "echo", "value": number}).result(WAIT_S) == number
        again = rt.status()
        assert again.epoch == status.epoch + 1
        assert {a.agent_id: a.incarnation for a in again.agents} == {a.agent_id: a.incarnation for a in status.agents}
        found = do(rt, "talker2-0", "ask", of="fresh-0", body=who).result(WAIT_S)
        assert found == {"agent": "fresh-0", "pid": found["pid"], "asker": "talker2-0"}
        assert rt.ask("fresh-0", who).result(WAIT_S)["pid"] == found["pid"]
        assert do(rt, "talker3-0", "publish", topic="later", body="still").result(WAIT_S) == 1, "it is known still"
        assert later.get(WAIT_S).body == "still"
        rt.wait_ready()
        assert rt.publish("news", "once more").result(WAIT_S) == len(rt.agents)
    gate.touch()
    count, *pids = asking.result(WAIT_S)
    assert count >= 20 and len(pids) == 1, "the same process answered throughout"


def test_a_subscriber_misses_nothing_while_the_coordinator_is_replaced(rt: fr.Runtime, tmp_path: Path) -> None:
    gate, may_go_on = tmp_path / "gate", threading.Event()
    before = rt.status()
    with fr.Runtime.connect("talking") as other, rt.subscribe("ticks") as ticks:
        counting = do(rt, "talker0-0", "publish_until", topic="ticks", gate=str(gate))
        heard = [ticks.get(WAIT_S).body]
        try:
            rt._driver.link._thread.soon(may_go_on.wait)  # it will be the last to come back
            os.kill(before.pid, signal.SIGKILL)
            assert other.status().epoch == before.epoch + 1
            with other.subscribe("ticks") as others:
                others.get(WAIT_S)  # so the agent has been told by the new coordinator who subscribes
        finally:
            may_go_on.set()
        gate.touch()
        count = counting.result(WAIT_S)
        heard += [ticks.get(WAIT_S).body for _ in range(count - len(heard))]
        assert heard == list(range(count))
