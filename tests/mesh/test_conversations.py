"""Conversations of a few agents, step by step."""

from __future__ import annotations

import itertools
import pickle

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talk_world import World

from flowray import errors
from flowray.errors import AgentUnreachable, AskDeadlock, AskTimeout, ConfigError, FlowrayError, NoRoom
from flowray.mesh import envelopes
from flowray.mesh.conversations import Conversations
from flowray.mesh.envelopes import BYTES, PICKLE, Answer, Ask, Confirm, Edge, Probe, Refusal, Room, Tell
from flowray.mesh.frames import BadFrame
from flowray.mesh.lanes import TalkLimits
from flowray.mesh.topics import Changes, Listing

PLACES = {"a": "p1", "b": "p2", "c": "p3", "d": "p4"}


def carry(world: World) -> None:
    while wires := world.busy_wires():
        world.deliver(wires[0])


def begun(world: World, agent: str):
    turn = world.take(agent)
    assert turn is not None
    return turn


def outcome_of(world: World, asked):
    (outcome,) = world.settled[asked.token]
    return outcome


def chain(world: World, *agents: str) -> list:
    """Each agent has a turn (of a message) in which it asks the next; the asks arrive."""
    for agent in dict.fromkeys(agents[:-1]):
        world.tell("d", agent)
    carry(world)
    asks = [world.ask(agent, other, begun(world, agent)) for agent, other in itertools.pairwise(agents)]
    carry(world)
    return asks


# ── deadlocks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_crossing_asks_have_one_victim_of_the_greatest_name():
    world = World(PLACES)
    asks = chain(world, "a", "b", "c", "a")
    victim = outcome_of(world, asks[2])
    assert isinstance(victim, AskDeadlock) and victim.cycle == ("c", "a", "b")
    assert str(victim) == "asking 'a': deadlock, each waits for the next: c -> a -> b -> c"
    assert world.settled[asks[0].token] == world.settled[asks[1].token] == []


def test_the_victims_ask_is_not_handled_any_more():
    world = World(PLACES)
    asks = chain(world, "a", "b", "a")
    assert isinstance(outcome_of(world, asks[1]), AskDeadlock)
    world.end("b", world.turns("b")[0])
    carry(world)
    world.settle()
    assert isinstance(outcome_of(world, asks[0]), Answer)
    assert world.of("a").lanes["a"].held == {}


def test_asks_of_run_close_no_circle():
    """`run` of a asks b, whose turn asks a: a's lane is free."""
    world = World(PLACES)
    world.ask("a", "b")
    carry(world)
    back = world.ask("b", "a", begun(world, "b"))
    carry(world)
    world.end("a", begun(world, "a"))
    carry(world)
    assert isinstance(outcome_of(world, back), Answer)


def test_a_chain_without_a_circle_costs_no_probes():
    world = World(PLACES)
    world.tell("d", "a")
    carry(world)
    for agent, other in itertools.pairwise("abcd"):
        world.ask(agent, other, begun(world, agent))
        carry(world)
    assert all(not turn.seen for agent in PLACES for turn in world.turns(agent))


def test_a_circle_that_timed_out_while_it_was_searched_is_nobodys_deadlock():
    world = World(PLACES)
    for agent in ("a", "b"):
        world.tell("d", agent)
    carry(world)
    first = world.ask("a", "b", begun(world, "a"), timeout_s=1.0)
    carry(world)
    second = world.ask("b", "a", begun(world, "b"))
    world.deliver(("p2", "p1"))  # the circle is complete, the probe is on its way
    assert world.circles_now()
    world.advance(2.0)
    carry(world)
    assert isinstance(outcome_of(world, first), AskTimeout)
    assert world.settled[second.token] == [] and world.victims == []


def test_a_search_that_died_with_a_process_is_made_again():
    """b waits for c and d, which both wait for a. The probe through d dies with d; the circle through c stays."""
    world = World(PLACES)
    for agent in ("a", "b", "c", "d"):
        world.tell(agent, agent)
    carry(world)
    world.ask("c", "a", begun(world, "c"))
    world.ask("d", "a", begun(world, "d"))
    turn = begun(world, "b")
    for other in ("d", "c"):
        world.ask("b", other, turn)
    carry(world)
    last = world.ask("a", "b", begun(world, "a"))
    world.deliver(("p1", "p2"))  # the last ask: b sends probes to d and c
    world.deliver(("p2", "p4"))
    world.deliver(("p4", "p1"))  # the one through d is at a, which has confirmed nothing yet
    world.kill("p4")
    carry(world)
    assert not world.circles_now()
    assert world.victims and world.settled[last.token] == []


def test_search_all_finds_what_nobody_searched_for(monkeypatch):
    """As if every search had been lost: the death of any process starts them again."""
    world = World(PLACES)
    for conversations in world.processes.values():
        monkeypatch.setattr(conversations.deadlocks, "_round", 0)
    lost: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr("flowray.mesh.deadlocks.Deadlocks.arrived", lambda self, ask, *rest: lost.append(ask))
        asks = chain(world, "a", "b", "a")
    assert lost and world.circles_now()
    world.kill("p3")
    carry(world)
    assert isinstance(outcome_of(world, asks[1]), AskDeadlock)


# ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sender_feels_a_receiver_that_does_not_take():
    world = World(PLACES)
    sent = 0
    while world.tell("a", "b", wait=False):
        sent += 1
        carry(world)
    assert sent == 4  # 1,000 bytes of first window at 257 each: the last may overshoot
    world.tell("a", "b")  # waits
    assert [len(outcomes) for outcomes in world.settled.values()] == [0]
    world.end("b", begun(world, "b"))
    carry(world)
    assert [len(outcomes) for outcomes in world.settled.values()] == [1]


def test_senders_share_the_capacity_of_a_lane():
    """With one sender a window may be 2,000 bytes; with four the lane's 4,000 are divided by four."""
    agents = {f"s-{n}": f"p{n}" for n in range(4)} | {"ear": "q"}
    world = World(agents)
    for n in range(4):
        world.tell(f"s-{n}", "ear")
    carry(world)
    for _ in range(4):
        world.end("ear", begun(world, "ear"))
    limits = [intake.limit_bytes - intake.consumed_bytes for intake in world.of("ear").lanes["ear"].intakes.values()]
    assert limits == [1_000, 1_000, 1_000, 1_000]
    alone = World({"s": "p", "ear": "q"})
    alone.tell("s", "ear")
    carry(alone)
    alone.end("ear", begun(alone, "ear"))
    (intake,) = alone.of("ear").lanes["ear"].intakes.values()
    assert intake.limit_bytes - intake.consumed_bytes == 2_000


def test_a_greedy_process_does_not_keep_others_out():
    """It fills its window and waits; who comes next stands behind that window, not behind all it wants to send."""
    world = World(PLACES)
    while world.tell("a", "b", wait=False):
        pass
    ahead = world.told["a", "b"]
    for _ in range(6):
        assert world.tell("a", "b")
    carry(world)
    assert world.tell("c", "b")
    carry(world)
    for _ in range(ahead + 1):
        turn = begun(world, "b")
        world.end("b", turn)
        carry(world)
    assert turn.message.sender == "c"


def test_who_waits_goes_first():
    world = World(PLACES)
    while world.tell("a", "b", wait=False):
        pass
    first = world.told["a", "b"]
    world.tell("a", "b")
    world.tell("a", "b")
    world.settle()
    assert world.heard["a", "b"] == list(range(1, first + 3))


def test_waiting_is_bounded_and_can_be_given_up():
    limits = TalkLimits(first_window_bytes=1, window_bytes=1, waiting_sends=2)
    world = World(PLACES, limits=limits)
    one = world.of("a")
    assert one.tell("a", "b", BYTES, b"")
    waiters = [one.wait_for_room("a", "b", BYTES, b"", token=n) for n in range(2)]
    with pytest.raises(NoRoom, match="2 messages wait already"):
        one.wait_for_room("a", "b", BYTES, b"", token=2)
    assert one.give_up_waiting(waiters[0]) and not one.give_up_waiting(waiters[0])
    one.wait_for_room("a", "b", BYTES, b"", token=3)


def test_open_asks_of_one_agent_are_bounded():
    world = World({"a": "p1", "a2": "p1", "b": "p2"}, limits=TalkLimits(open_asks=2))
    one = world.of("a")
    for token in range(2):
        one.ask("a", "b", BYTES, b"", now=0.0, timeout_s=1.0, token=token)
    with pytest.raises(NoRoom, match=r"2 asks of a are open: await some first \(mesh\.talk\.open_asks\)"):
        one.ask("a", "b", BYTES, b"", now=0.0, timeout_s=1.0, token=2)
    one.ask("a2", "b", BYTES, b"", now=0.0, timeout_s=1.0, token=3)


def test_a_lane_refuses_asks_beyond_its_bytes():
    world = World(PLACES, limits=TalkLimits(ask_bytes=500))
    asks = [world.ask("a", "b") for _ in range(3)]
    carry(world)
    assert [world.settled[asked.token] != [] for asked in asks] == [False, False, True]
    refused = outcome_of(world, asks[2])
    assert isinstance(refused, NoRoom) and "mesh.talk.ask_bytes" in str(refused)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_ask_whose_time_is_over_is_not_handled():
    world = World(PLACES)
    asked = world.ask("a", "b", timeout_s=1.0)
    carry(world)
    world.now = 1.5  # b's clock; a has not looked at its own
    assert world.take("b") is None
    carry(world)
    assert isinstance(outcome_of(world, asked), AskTimeout)


def test_an_ask_within_an_ask_has_no_more_time_than_that():
    world = World(PLACES)
    world.ask("a", "b", timeout_s=5.0)
    carry(world)
    world.now = 2.0
    inner = world.ask("b", "c", begun(world, "b"), timeout_s=100.0)
    assert inner.expires_at == 5.0


def test_an_ask_of_a_turn_that_is_over_goes_on_without_it():
    world = World(PLACES)
    world.tell("a", "b")
    carry(world)
    turn = begun(world, "b")
    before = world.ask("b", "c", turn)
    world.end("b", turn)
    after = world.ask("b", "c", turn)
    assert before.turn is None and after.turn is None
    world.settle()
    assert isinstance(outcome_of(world, before), Answer) and isinstance(outcome_of(world, after), Answer)


def test_answers_that_come_late_or_from_others_are_ignored():
    world = World(PLACES)
    asked = world.ask("a", "b", timeout_s=1.0)
    one = world.of("a")
    answer = envelopes.encode_parcel([Answer(asked.number, BYTES, b"forged")])
    one.receive("p3", answer, 0.0)
    assert one.open_asks == 1
    world.advance(2.0)
    one.receive("p2", answer, 0.0)
    world.after()
    assert isinstance(outcome_of(world, asked), AskTimeout)


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_window_goes_on_when_the_directory_is_a_new_one():
    """A restarted coordinator lists nobody at first. Were the count to begin anew, it would no longer match."""
    world = World(PLACES)
    one = world.of("a")
    for _ in range(20):
        assert world.tell("a", "b", wait=False)
        carry(world)
        world.end("b", begun(world, "b"))
        carry(world)
    route = one._routes["b"]
    before = route.sent_bytes
    assert one.learn(Changes(2, 0, 1, ()))
    with pytest.raises(AgentUnreachable, match="unlisted"):
        one.tell("a", "b", BYTES, b"")
    assert one.learn(Changes(2, 1, 2, (Listing("b", "p2"),)))
    assert one.tell("a", "b", BYTES, b"")
    assert one._routes["b"] is route and route.sent_bytes > before


def test_an_agent_that_moved_is_found_where_it_is_now():
    world = World(PLACES)
    assert world.tell("a", "b")
    assert world.of("a").learn(Changes(1, world.directory.version, 99, (Listing("b", "p3"),)))
    world.of("c").host("b")
    world.of("b").leave("b")
    assert world.of("a").tell("a", "b", BYTES, b"2")
    world.after()
    assert [len(world.wires[pair]) for pair in [("p1", "p2"), ("p1", "p3")]] == [1, 1]
    carry(world)
    assert len(world.of("c").lanes["b"].queue) == 1 and world.processes["p2"].dropped == 1


# ── envelopes and errors ─────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_and_changes_nothing(data):
    one = Conversations("p1")
    one.host("a")
    try:
        arrived = envelopes.decode_parcel(data)
    except BadFrame:
        with pytest.raises(BadFrame):
            one.receive("p2", data, 0.0)
        return
    one.receive("p2", data, 0.0)
    assert isinstance(arrived, list)


EDGES = st.builds(
    Edge,
    st.sampled_from("abx"),
    st.sampled_from(["p1", "p2"]),
    st.integers(0, 9),
    st.sampled_from("abx"),
    st.sampled_from(["p1", "p2"]),
)
PATHS = st.lists(EDGES, min_size=1, max_size=4).map(tuple)
STRANGE = st.one_of(
    st.builds(Tell, st.sampled_from("abx"), st.text(max_size=3), st.integers(0, 2), st.binary(max_size=9), st.text()),
    st.builds(Ask, st.integers(0, 9), st.sampled_from("abx"), st.text(max_size=3), st.just(0), st.binary(max_size=9),
              st.floats(0, 9), st.booleans()),
    st.builds(Answer, st.integers(0, 9), st.integers(0, 2), st.binary(max_size=9)),
    st.builds(Refusal, st.integers(0, 9), st.text(max_size=9)),
    st.builds(Room, st.sampled_from("abx"), st.integers(0, 1 << 60)),
    st.builds(envelopes.Gone, st.sampled_from("abx")),
    st.builds(envelopes.Withdrawal, st.integers(0, 9), st.sampled_from("abx")),
    st.builds(Probe, PATHS, st.integers(0, 5)),
    st.builds(Confirm, PATHS, st.integers(0, 5), st.integers(0, 5)),
    st.builds(envelopes.Again, EDGES),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(STRANGE, max_size=12))
def test_no_sense_from_a_peer_breaks_anything(strange):
    """A peer that sends well-formed nonsense: asks of a and b go on, and whatever is settled is settled once."""
    one = Conversations("p1")
    one.learn(Changes(1, 0, 1, (Listing("x", "p2"),)))
    lanes = [one.host("a"), one.host("b")]
    for token in range(3):
        one.ask("a", "x", BYTES, b"", now=0.0, timeout_s=9.0, token=token)
    for envelope in strange:
        one.receive("p2", envelopes.encode_parcel([envelope]), 0.0)
        for lane in lanes:
            turn = one.take(lane, 0.0)
            if turn is not None:
                one.answer(turn, BYTES, b"")
        for outbox in one.flushable:
            if (parcel := one.take_parcel(outbox)) is not None and outbox.peer == "p1":
                one.receive("p1", parcel, 0.0)
    one.expire(100.0)
    assert sorted(token for token, _ in one.settled) == [0, 1, 2]
    assert one.open_asks == 0


def test_what_outsiders_may_not_send():
    edge = Edge("a", "p", 1, "b", "q")
    for envelope in (
        Tell("b", "someone", BYTES, b""), Tell("b", "client", PICKLE, b""), Answer(1, PICKLE, b""),
        Ask(1, "b", "client", PICKLE, b"", 1.0, False), Probe((edge,), 1), Confirm((edge,), 0, 0),
        envelopes.Again(edge),
    ):  # fmt: skip
        with pytest.raises(BadFrame, match="client"):
            envelopes.check_outsider("client", [envelope])
    envelopes.check_outsider("client", [Tell("b", "client", BYTES, b""), Answer(1, BYTES, b"")])


@pytest.mark.parametrize("nonsense", [float("nan"), -1.0])
def test_a_budget_is_a_number_of_seconds(nonsense):
    parcel = msgspec.msgpack.encode([[1, 1, "a", "b", 0, b"", nonsense, False]])
    with pytest.raises(BadFrame):
        envelopes.decode_parcel(parcel)


def test_errors_travel_between_processes():
    examples: list[FlowrayError] = [
        AgentUnreachable("a", "gone"), NoRoom("a", "full"), errors.AskError("a", "odd"), AskTimeout("a", "late"),
        errors.AskFailed("a", "KeyError", "'x'"), AskDeadlock("a", ("b", "a")),
    ]  # fmt: skip
    for error in examples:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


@pytest.mark.parametrize("field", ["message_bytes", "open_asks", "send_timeout_s", "first_window_bytes"])
def test_senseless_limits_name_their_field(field):
    with pytest.raises(ConfigError, match=rf"mesh\.talk\.{field}"):
        TalkLimits(**{field: 0})
