"""Scenarios as text: directives and what the core answers, for a person to read and a test to compare.

    # A comment; blank lines part the steps.
    agents writer count=2 slots=1 needs=write
    ready writer-0
    submit a priority=5
    > accept a
    > start a attempt 1 on writer-0 (first)

A line that does not begin with `>` is a directive; those beginning with `>` are the commands that it led to. `run`
gives the whole text back with the answers that the core gives now, so equal text means equal behaviour. Directives:

    policy retry.backoff_s=1 cancel_grace_s=2 ...   only at the beginning
    agents NAME count= slots= tier= needs=a,b       submit ID priority= deadline= timeout= attempts= key= print= needs=
                                                    idempotent=yes fallback= exclusive=yes
    ready AGENT [TASK/ATTEMPT[/EPOCH] ...]          lost AGENT [certain=no]      start_failed AGENT
    answer AGENT TASK [attempt= epoch= run=]        fail AGENT TASK [attempt= epoch= retryable=no]
    step AGENT TASK NAME [value= attempt= epoch=]
    hand_back AGENT TASK [attempt= epoch=]          cancel ID       at SECONDS      restart      tail_lost N
    state

AGENT in `ready`, `lost` and `start_failed` may be an older process of it: writer-0@1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from flowray.core.book import Entry
from flowray.core.commands import Command, DurableCommand
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
from flowray.core.model import AgentId, AgentSpec, Failure, Payload, Running, Task, TaskId
from flowray.core.policy import CorePolicy
from flowray.errors import ConfigError
from flowray.testing.trace import command_text


class Fixed:
    """Randomness without surprises: every draw gives the middle."""

    def random(self) -> float:
        return 0.5


class Scenario:
    """One core, driven by directives."""

    def __init__(self) -> None:
        self._policy = CorePolicy()
        self._journal: list[DurableCommand] = []
        self._now = 0.0
        self._core = self._fresh(1)
        self._directives: dict[str, Callable[[list[str], dict[str, str]], list[str]]] = {
            "policy": self._set_policy,
            "agents": self._agents,
            "submit": self._submit,
            "ready": self._ready,
            "lost": self._lost,
            "start_failed": self._start_failed,
            "answer": self._answer,
            "fail": self._fail,
            "hand_back": self._hand_back,
            "step": self._step,
            "cancel": lambda words, _: self._tell(CancelRequested(TaskId(words[0]))),
            "at": self._at,
            "restart": self._restart,
            "tail_lost": self._tail_lost,
            "state": lambda words, named: self._state(),
        }

    def run(self, text: str) -> str:
        """The same text with the core's answers of now."""
        lines = []
        for line in text.splitlines():
            if line.startswith(">"):
                continue
            lines.append(line)
            words = line.split("#")[0].split()
            if words:
                lines.extend(f"> {answer}" for answer in self._do(line, words))
        return "\n".join(lines) + "\n"

    def _do(self, line: str, words: list[str]) -> list[str]:
        directive = self._directives.get(words[0])
        if directive is None:
            raise ConfigError("scenario", f"no directive {words[0]!r} in {line!r}", ", ".join(self._directives))
        named = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        answers = directive([word for word in words[1:] if "=" not in word], named)
        self._core.check()
        return answers

    # ── telling the core ─────────────────────────────────────────────────────────────────────────────────────────

    def _fresh(self, epoch: int) -> Coordination:
        return Coordination.recover(
            epoch=epoch, rng=Fixed(), now=self._now, policy=self._policy, commands=self._journal
        )

    def _tell(self, event: Event) -> list[str]:
        return self._said(self._core.handle(event, self._now))

    def _said(self, commands: list[Command]) -> list[str]:
        self._journal.extend(command for command in commands if command.durable)  # type: ignore[misc]
        return [command_text(command) for command in commands]

    def _at(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        """Let time pass, with a tick whenever one is due."""
        until, answers = float(words[0]), []
        while (due := self._core.next_due()) is not None and due <= until:
            self._now = max(self._now, due)
            answers += [f"{self._now:g} s: {text}" for text in self._tell(Ticked())]
        self._now = max(self._now, until)
        return answers

    def _restart(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        self._core = self._fresh(self._core.epoch + 1)
        return [f"epoch {self._core.epoch}", *self._state()]

    def _tail_lost(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        count = int(words[0])
        lost = self._journal[-count:]
        del self._journal[-count:]
        return [f"lost: {command_text(command)}" for command in lost]

    def _state(self) -> list[str]:
        book = self._core.book.open
        tasks = [f"{task_id} {e.state.value}{_where(e)}" for task_id, e in book.items()]
        agents = [f"{a.id}#{a.incarnation} {a.state.value} {a.held}/{a.slots}" for a in self._core.registry.agents()]
        return [", ".join(tasks) or "no open tasks", ", ".join(agents) or "no agents"]

    # ── directives ───────────────────────────────────────────────────────────────────────────────────────────────

    def _set_policy(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        tree: dict[str, Any] = {}
        for name, value in named.items():
            *path, last = name.split(".")
            branch = tree
            for part in path:
                branch = branch.setdefault(part, {})
            branch[last] = float(value) if "." in value else int(value)
        self._policy = msgspec.convert(tree, CorePolicy)
        self._core = self._fresh(self._core.epoch)
        return []

    def _agents(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        spec = AgentSpec(
            name=words[0],
            tier=named.get("tier", "primary"),
            capabilities=_list(named.get("needs", "")),
            count=int(named.get("count", "1")),
            slots=int(named.get("slots", "1")),
        )
        return self._tell(AgentsAdded(spec))

    def _submit(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        task = Task(
            id=TaskId(words[0]),
            needs=_list(named.get("needs", "")),
            priority=int(named.get("priority", "0")),
            deadline_s=_seconds(named.get("deadline")),
            attempt_timeout_s=_seconds(named.get("timeout")),
            max_attempts=int(named.get("attempts", "3")),
            key=named.get("key", ""),
            fingerprint=named.get("print", ""),
            idempotent=named.get("idempotent", "no") == "yes",
            fallback=named.get("fallback", ""),
            exclusive=named.get("exclusive", "no") == "yes",
        )
        return self._tell(TaskSubmitted(task))

    def _process(self, word: str) -> tuple[AgentId, int]:
        """An agent and its incarnation: the newest, unless said otherwise."""
        name, _, incarnation = word.partition("@")
        agent = self._core.registry.agent(AgentId(name))
        return AgentId(name), int(incarnation) if incarnation else agent.incarnation if agent is not None else 1

    def _ready(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        running = []
        for word in words[1:]:
            task_id, attempt, *epoch = word.split("/")
            running.append(Running(TaskId(task_id), int(attempt), int(epoch[0]) if epoch else self._core.epoch))
        return self._tell(AgentReady(*self._process(words[0]), tuple(running)))

    def _lost(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        certain = named.get("certain", "yes") == "yes"
        return self._tell(AgentLost(*self._process(words[0]), "killed", certain))

    def _start_failed(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        failure = Failure(kind="application", type="OSError", message="no model file")
        return self._tell(AgentStartFailed(*self._process(words[0]), failure))

    def _token(self, words: list[str], named: Mapping[str, str]) -> tuple[TaskId, int, int, AgentId]:
        """Of the attempt meant: the current one, unless said otherwise."""
        entry = self._core.book.open.get(TaskId(words[1]))
        attempt = int(named.get("attempt", entry.attempt if entry is not None else 1))
        epoch = int(named.get("epoch", entry.epoch if entry is not None else self._core.epoch))
        return TaskId(words[1]), attempt, epoch, AgentId(words[0])

    def _answer(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        value = Payload(data=b"\xa2ok", size_bytes=3)
        run_s = float(named.get("run", "1.0"))
        return self._tell(AttemptFinished(*self._token(words, named), value=value, run_s=run_s))

    def _fail(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        retryable = named.get("retryable", "yes") == "yes"
        failure = Failure(kind="application", type="ConnectionError", message="reset", retryable=retryable)
        return self._tell(AttemptFinished(*self._token(words, named), failure=failure, run_s=1.0))

    def _step(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        value = Payload(data=named.get("value", "ok").encode(), size_bytes=2)
        token = self._token(words, named)
        return self._tell(StepFinished(*token, self._process(words[0])[1], words[2], value))

    def _hand_back(self, words: list[str], named: Mapping[str, str]) -> list[str]:
        return self._tell(AttemptReturned(*self._token(words, named)))


def _where(entry: Entry) -> str:
    names = " and ".join(held.agent_id for held in entry.running())
    return f" on {names}" if names else ""


def _list(text: str) -> tuple[str, ...]:
    return tuple(sorted(part for part in text.split(",") if part))


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None else None
