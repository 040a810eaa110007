"""Tasks, agents and events with defaults, and a core that is easy to talk to."""

from __future__ import annotations

from random import Random
from typing import Any

from flowray.core.commands import Command, DurableCommand
from flowray.core.coordination import Coordination
from flowray.core.events import AgentLost, AgentReady, AgentsAdded, AttemptFinished, Event, TaskSubmitted, Ticked
from flowray.core.model import AgentId, AgentSpec, Failure, Payload, Running, Task, TaskId
from flowray.core.policy import CorePolicy

DONE = Payload(data=b"\x01", size_bytes=1)


def task(id: str = "t", **fields: Any) -> Task:  # noqa: A002 - the field's own name
    return Task(id=TaskId(id), **fields)


def spec(name: str = "writer", **fields: Any) -> AgentSpec:
    return AgentSpec(**{"name": name, "tier": "primary", **fields})


def failure(**fields: Any) -> Failure:
    return Failure(**{"kind": "application", "type": "ValueError", "message": "odd", "retryable": True, **fields})


class Team:
    """A core, its clock and its journal."""

    def __init__(self, policy: CorePolicy | None = None, seed: int = 1) -> None:
        self.policy = policy
        self.core = Coordination(epoch=1, rng=Random(seed), policy=policy)
        self.now = 0.0
        self.journal: list[DurableCommand] = []

    def tell(self, event: Event) -> list[Command]:
        commands = self.core.handle(event, self.now)
        self.journal += [c for c in commands if c.durable]  # type: ignore[misc]
        self.core.check()
        return commands

    def ready(self, count: int = 1, **fields: Any) -> list[str]:
        """A class of agents, all of them up."""
        one = spec(count=count, **fields)
        self.tell(AgentsAdded(one))
        names = [f"{one.name}-{number}" for number in range(count)]
        for name in names:
            self.up(name)
        return names

    def up(self, name: str, *running: tuple[str, int, int]) -> list[Command]:
        return self.tell(
            AgentReady(AgentId(name), self.incarnation(name), tuple(Running(TaskId(t), a, e) for t, a, e in running))
        )

    def incarnation(self, name: str) -> int:
        agent = self.core.registry.agent(AgentId(name))
        return agent.incarnation if agent is not None else 1

    def submit(self, id: str = "t", **fields: Any) -> list[Command]:  # noqa: A002
        return self.tell(TaskSubmitted(task(id, **fields)))

    def answer(
        self, name: str, task_id: str, attempt: int = 1, epoch: int | None = None, **fields: Any
    ) -> list[Command]:
        if "failure" not in fields:
            fields.setdefault("value", DONE)
        fields.setdefault("run_s", 1.0)
        number = self.core.epoch if epoch is None else epoch
        return self.tell(AttemptFinished(TaskId(task_id), attempt, number, AgentId(name), **fields))

    def lose(self, name: str) -> list[Command]:
        return self.tell(AgentLost(AgentId(name), self.incarnation(name), "killed"))

    def tick(self, at: float) -> list[Command]:
        """Let time pass, with a tick whenever one is due."""
        commands: list[Command] = []
        while (due := self.core.next_due()) is not None and due <= at:
            self.now = max(self.now, due)
            commands += self.tell(Ticked())
        self.now = at
        return commands

    def restart(self) -> None:
        """A new epoch from the journal alone."""
        self.core = Coordination.recover(
            epoch=self.core.epoch + 1, rng=Random(2), now=self.now, policy=self.policy, commands=self.journal
        )
        self.core.check()

    def state(self, task_id: str) -> str:
        entry = self.core.book.open.get(TaskId(task_id))
        return entry.state.value if entry is not None else "gone"


def kinds(commands: list[Command]) -> list[str]:
    """The commands' names, in order."""
    return [type(command).__name__ for command in commands]


def at_work() -> Team:
    """Two agents, of which the first is up and runs the task "t"."""
    team = Team()
    team.tell(AgentsAdded(spec(count=2)))
    team.up("writer-0")
    team.submit("t")
    return team
