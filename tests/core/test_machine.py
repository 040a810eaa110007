"""Any events in any order, sensible or not: the core neither raises nor contradicts itself, and recovery agrees."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flowray.core.acting import ActingPolicy
from flowray.core.admission import AdmissionPolicy
from flowray.core.commands import AcceptTask, DurableCommand, ResolveTask, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import (
    AgentLost,
    AgentReady,
    AgentsAdded,
    AgentStartFailed,
    AttemptFinished,
    AttemptReturned,
    CancelRequested,
    Event,
    StepFinished,
    TaskSubmitted,
    Ticked,
)
from flowray.core.model import Running
from flowray.core.placement import PlacementPolicy
from flowray.core.policy import CorePolicy
from flowray.core.retry import RetryPolicy

from .builders import DONE, failure, spec, task

POLICY = CorePolicy(
    admission=AdmissionPolicy(max_open_tasks=6, max_recent=3),
    retry=RetryPolicy(max_losses=3, poison_kills=2),
    placement=PlacementPolicy(prefetch_s=0.5, max_prefetch=2),
    acting=ActingPolicy(hedge_factor=1.0, hedge_share=1.0),
)
CAN = {"reader": ("read",), "writer": ("write",), "both": ("read", "write")}
TASKS = st.sampled_from([f"t{n}" for n in range(8)])
AGENTS = st.sampled_from(["reader-0", "reader-1", "writer-0", "writer-1", "nobody-0"])
NUMBERS = st.integers(0, 4)
NEEDS = st.sampled_from([(), ("read",), ("write",), ("read", "write"), ("fly",)])
TOKENS = st.tuples(TASKS, NUMBERS, NUMBERS)


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core = Coordination(epoch=1, rng=Random(0), policy=POLICY)
        self.now = 0.0
        self.journal: list[DurableCommand] = []
        self.started: list[StartAttempt] = []
        self.open: set[str] = set()
        for name in ("reader", "writer"):
            self.tell(AgentsAdded(spec(name, capabilities=CAN[name], count=2)))

    def tell(self, event: Event) -> None:
        for command in self.core.handle(event, self.now):
            if command.durable:
                self.journal.append(command)
            if isinstance(command, AcceptTask):
                assert command.task.id not in self.open
                self.open.add(command.task.id)
            elif isinstance(command, ResolveTask):
                self.open.remove(command.outcome.task_id)
            elif isinstance(command, StartAttempt):
                self.started.append(command)

    def meant(self, data: st.DataObject) -> tuple[str, int, int, str]:
        """An attempt: mostly one that was started, sometimes nonsense."""
        if self.started and data.draw(st.integers(0, 3)):
            start = data.draw(st.sampled_from(self.started[-6:]))
            return start.task_id, start.attempt, start.epoch, start.agent_id
        return (*data.draw(TOKENS), data.draw(AGENTS))

    def incarnation(self, agent_id: str, data: st.DataObject) -> int:
        agent = self.core.registry.agent(agent_id)
        if agent is None or not data.draw(st.integers(0, 4)):
            return data.draw(NUMBERS)
        return agent.incarnation

    @rule(name=TASKS, needs=NEEDS, priority=st.integers(-1, 1), data=st.data())
    def submit(self, name, needs, priority, data):
        deadline_s = data.draw(st.none() | st.sampled_from([0.5, 5.0]))
        timeout_s = data.draw(st.none() | st.sampled_from([0.5, 5.0]))
        key = data.draw(st.sampled_from(["", "", "k1", "k2"]))
        one = task(
            name, needs=needs, priority=priority, deadline_s=deadline_s, attempt_timeout_s=timeout_s, key=key,
            fingerprint=data.draw(st.sampled_from("fg")), max_attempts=data.draw(st.integers(2, 3)),
            idempotent=data.draw(st.booleans()), fallback=data.draw(st.sampled_from(["", "", "reader", "both"])),
            exclusive=data.draw(st.booleans()),
        )  # fmt: skip
        self.tell(TaskSubmitted(one))

    @rule(name=TASKS)
    def cancel(self, name):
        self.tell(CancelRequested(name))

    @rule(data=st.data(), good=st.booleans(), run_s=st.sampled_from([0.0, 0.01, 3.0]))
    def answer(self, data, good, run_s):
        kind = data.draw(st.sampled_from(["application", "cancelled"]))
        why = None if good else failure(kind=kind, retryable=data.draw(st.booleans()))
        self.tell(AttemptFinished(*self.meant(data), value=DONE if good else None, failure=why, run_s=run_s))

    @rule(data=st.data())
    def hand_back(self, data):
        self.tell(AttemptReturned(*self.meant(data)))

    @rule(name=AGENTS, data=st.data(), nonsense=st.lists(TOKENS, max_size=2))
    def ready(self, name, data, nonsense):
        held = [(s.task_id, s.attempt, s.epoch) for s in self.started[-6:] if s.agent_id == name]
        said = [token for token in held if data.draw(st.booleans())] + nonsense
        self.tell(AgentReady(name, self.incarnation(name, data), tuple(Running(*token) for token in said)))

    @rule(name=AGENTS, data=st.data())
    def lose(self, name, data):
        self.tell(AgentLost(name, self.incarnation(name, data), "killed", data.draw(st.booleans())))

    @rule(data=st.data(), name=st.sampled_from("abc"))
    def take_step(self, data, name):
        task_id, attempt, epoch, agent_id = self.meant(data)
        self.tell(StepFinished(task_id, attempt, epoch, agent_id, self.incarnation(agent_id, data), name, DONE))

    @rule(name=AGENTS, data=st.data())
    def fail_to_start(self, name, data):
        self.tell(AgentStartFailed(name, self.incarnation(name, data), failure()))

    @rule(name=st.sampled_from(["reader", "writer", "both"]), count=st.integers(0, 2))
    def scale(self, name, count):
        self.tell(AgentsAdded(spec(name, capabilities=CAN[name], count=count)))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 6.0, 200.0]))
    def tick(self, seconds):
        self.now += seconds
        self.tell(Ticked())

    @rule(lost=st.integers(0, 3))
    def restart(self, lost):
        """The coordinator dies with the last commands not on disk."""
        if lost:
            del self.journal[-lost:]
        commands = msgspec.msgpack.decode(msgspec.msgpack.encode(self.journal), type=list[DurableCommand])
        self.core = Coordination.recover(
            epoch=self.core.epoch + 1, rng=Random(1), now=self.now, policy=POLICY, commands=commands
        )
        self.open = set(self.core.book.open)

    @invariant()
    def holds_together(self):
        self.core.check()
        assert self.open == set(self.core.book.open)

    def teardown(self):
        rebuilt = Coordination.recover(epoch=99, rng=Random(2), now=self.now, policy=POLICY, commands=self.journal)
        rebuilt.check()
        assert rebuilt.book.snapshot(0.0) == self.core.book.snapshot(0.0)
        again = Coordination.recover(
            epoch=99, rng=Random(2), now=self.now, policy=POLICY, snapshot=self.core.snapshot()
        )
        assert again.book.snapshot(0.0) == rebuilt.book.snapshot(0.0)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=120, stateful_step_count=50, deadline=None, derandomize=True)
