"""Agents that leave their processes: nothing fails, most of a class stays, and a drained node gets nobody."""

from __future__ import annotations

from random import Random
from typing import TypeVar

from flowray.core.commands import Command, MarkNode, RequeueTask, ResolveTask, StartAgent, StartAttempt, StopAgent
from flowray.core.coordination import Coordination
from flowray.core.draining import DrainPolicy
from flowray.core.events import AgentLost, AgentReady, AgentsAdded, AgentsDrained, NodeDrained
from flowray.core.model import AgentId, StatefulSpec
from flowray.core.policy import CorePolicy
from flowray.core.states import AgentState, TaskState

from .builders import Team, spec

C = TypeVar("C", bound=Command)


def of(commands: list[Command], kind: type[C]) -> list[C]:
    return [command for command in commands if isinstance(command, kind)]


def drain(team: Team, *names: str) -> list[Command]:
    return team.tell(AgentsDrained(tuple((AgentId(name), team.incarnation(name)) for name in names)))


def up_at(team: Team, name: str, node: str) -> list[Command]:
    return team.tell(AgentReady(AgentId(name), team.incarnation(name), node=node))


def state_of(team: Team, name: str) -> AgentState:
    agent = team.core.registry.agent(AgentId(name))
    assert agent is not None
    return agent.state


def test_who_has_nothing_leaves_at_once_and_is_started_again() -> None:
    team = Team()
    team.ready(2)
    said = drain(team, "writer-0")
    assert [c.agent_id for c in of(said, StopAgent)] == ["writer-0"]
    assert [(c.agent_id, c.incarnation) for c in of(said, StartAgent)] == [("writer-0", 2)]


def test_who_is_busy_takes_nothing_new_and_leaves_when_it_has_finished() -> None:
    team = Team()
    team.ready()
    team.submit("a")
    assert not drain(team, "writer-0")
    assert state_of(team, "writer-0") is AgentState.DRAINING
    assert not of(team.submit("b"), StartAttempt)
    said = team.answer("writer-0", "a")
    assert of(said, ResolveTask)[0].outcome.state is TaskState.SUCCEEDED
    assert not of(said, StartAttempt), "what waits is for the next incarnation"
    assert of(said, StopAgent) and of(said, StartAgent)
    assert of(team.up("writer-0"), StartAttempt)[0].task_id == "b"


def test_what_is_not_finished_in_time_is_handed_over_without_blame() -> None:
    team = Team(CorePolicy(drain=DrainPolicy(grace_s=5.0)))
    team.ready(2)
    name = of(team.submit("a"), StartAttempt)[0].agent_id
    drain(team, name)
    assert not team.tick(4.9)
    said = team.tick(5.1)
    assert of(said, StopAgent)[0].agent_id == name
    assert of(said, RequeueTask)[0].counts == "losses", "it did not kill its agent"
    assert of(said, StartAttempt)[0].agent_id != name
    assert state_of(team, name) is AgentState.STARTING, "at once: it was no crash"


def test_most_of_a_class_stays() -> None:
    team = Team(CorePolicy(drain=DrainPolicy(at_once=0.2)))
    names = team.ready(10)
    left = [c.agent_id for c in of(drain(team, *names), StopAgent)]
    assert len(left) == 2
    for _ in range(8):
        said = team.up(left.pop(0))
        left += [c.agent_id for c in of(said, StopAgent)]
        assert len(left) == 2
    team.up(left.pop())
    assert not of(team.up(left.pop()), StopAgent)
    assert all(team.incarnation(name) == 2 for name in names)


def test_who_waits_for_others_to_be_back_waits_as_long_as_that_takes() -> None:
    team = Team(CorePolicy(drain=DrainPolicy(grace_s=5.0)))
    names = team.ready(2)
    assert len(of(drain(team, *names), StopAgent)) == 1
    assert not of(team.tick(60.0), StopAgent)
    assert sum(state_of(team, name) is AgentState.READY for name in names) == 1


def test_who_has_left_already_is_not_meant() -> None:
    team = Team()
    team.ready()
    meant = AgentsDrained((("writer-0", 1),))
    team.tell(meant)
    team.up("writer-0")
    assert not team.tell(meant)


def test_a_crash_while_it_finishes_changes_nothing_of_that() -> None:
    team = Team()
    team.ready(2)
    name = of(team.submit("a"), StartAttempt)[0].agent_id
    drain(team, name)
    team.tell(AgentLost(AgentId(name), 1, "died"))
    assert state_of(team, name) is AgentState.WAITING
    team.tick(0.0)
    assert state_of(team, name) is AgentState.STARTING


def test_who_is_not_wanted_any_more_meanwhile_is_not_started_again() -> None:
    team = Team()
    team.ready(2)
    team.submit("a")
    team.submit("b")
    drain(team, "writer-1")
    team.tell(AgentsAdded(spec(count=1)))
    held = next(task_id for task_id, entry in team.core.book.open.items() if entry.agent_id == "writer-1")
    said = team.answer("writer-1", held)
    assert of(said, StopAgent) and not of(said, StartAgent)
    assert team.core.registry.agent(AgentId("writer-1")) is None


def test_a_drained_node_gets_empty_and_stays_so_over_a_restart() -> None:
    team = Team(CorePolicy(drain=DrainPolicy(at_once=1.0)))
    team.tell(AgentsAdded(spec(count=3)))
    for name, node in (("writer-0", "a"), ("writer-1", "b"), ("writer-2", "b")):
        up_at(team, name, node)
    said = team.tell(NodeDrained("b"))
    assert [c.node for c in of(said, MarkNode)] == ["b"]
    assert [c.agent_id for c in of(said, StopAgent)] == ["writer-1", "writer-2"]
    assert not of(team.tell(NodeDrained("b")), MarkNode), "once is enough"
    assert not of(up_at(team, "writer-1", "a"), StopAgent)

    core = Coordination.recover(epoch=2, rng=Random(1), now=0.0, commands=team.journal)
    assert list(core.book.drained) == ["b"]
    again = Coordination.recover(epoch=2, rng=Random(1), now=0.0, snapshot=core.snapshot())
    assert list(again.book.drained) == ["b"]
    said = core.handle(AgentReady(AgentId("writer-2"), 2, node="b"), 0.1)
    assert of(said, StopAgent)[0].agent_id == "writer-2", "it came up where nobody should be"


def test_who_is_wanted_again_before_it_had_left_leaves_a_drained_node_all_the_same() -> None:
    team = Team()
    team.tell(AgentsAdded(spec(count=2)))
    up_at(team, "writer-0", "a")
    up_at(team, "writer-1", "b")
    team.submit("t")
    team.submit("u")
    team.tell(AgentsAdded(spec(count=1)))  # writer-1 finishes what it has
    team.tell(NodeDrained("b"))
    team.tell(AgentsAdded(spec(count=2)))
    held = next(task_id for task_id, entry in team.core.book.open.items() if entry.agent_id == "writer-1")
    assert of(team.answer("writer-1", held), StartAgent)[0].agent_id == "writer-1"


def test_a_node_may_be_taken_back() -> None:
    team = Team()
    team.tell(AgentsAdded(spec(count=2)))
    for name in ("writer-0", "writer-1"):
        up_at(team, name, "b")
    team.tell(NodeDrained("b"))  # one at a time
    team.tell(NodeDrained("b", drained=False))
    assert not team.core.book.drained
    left = [name for name in ("writer-0", "writer-1") if team.incarnation(name) == 2]
    assert len(left) == 1
    assert not of(up_at(team, left[0], "b"), StopAgent)


def test_a_state_leaves_when_another_process_is_ready_for_it() -> None:
    team = Team(CorePolicy(drain=DrainPolicy(grace_s=60.0)))
    team.tell(AgentsAdded(spec("ledger", stateful=StatefulSpec(standby="warm"))))
    team.up("ledger-0")
    assert not of(drain(team, "ledger-0"), StopAgent), "nobody else has the state"
    said = team.up("ledger.standby-0")
    assert "ledger-0" in [c.agent_id for c in of(said, StopAgent)]
    assert team.core.book.inboxes["ledger-0"].seat == "ledger.standby-0"
    said = team.tick(0.0)
    assert [c.agent_id for c in of(said, StartAgent)] == ["ledger-0"]


def test_a_state_without_a_second_process_leaves_after_a_while_all_the_same() -> None:
    team = Team(CorePolicy(drain=DrainPolicy(grace_s=5.0)))
    team.tell(AgentsAdded(spec("ledger", stateful=StatefulSpec(standby="warm"))))
    team.up("ledger-0")
    team.submit("a", agent="ledger")
    drain(team, "ledger-0")
    assert of(team.tick(5.1), StopAgent)[0].agent_id == "ledger-0"
    assert team.core.book.open["a"].state is TaskState.RUNNING, "its input is on disk, and waits"
