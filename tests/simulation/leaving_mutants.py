"""Bugs planted in drain and in restart intensity: part of `mutants.MUTANTS`."""

from __future__ import annotations

from collections.abc import Callable

from flowray.core.draining import Draining
from flowray.core.escalation import Escalation

Plant = Callable[[], None]


def leaving_mutants(swap: Callable[..., Plant]) -> dict[str, Plant]:
    """By name, as `mutants.MUTANTS` has them."""
    d, e = Draining, Escalation
    return {
        "who leaves takes its attempts along": swap(d, "_begin", "elif not agent.held:", "elif True:"),
        "who leaves is never handed over": swap(d, "_ask", "self._core.timers.set(", "(lambda *_: None)("),
        "who leaves does not come back": swap(d, "_leave", "core.lives.start(agent)", "pass"),
        "who comes up on a drained node stays": swap(d, "ready", "agent.node in self._core.book.drained", "False"),
        "who left is not started again for long": swap(
            d, "is_leaving", "return agent_id in self._leaving", "return False"
        ),
        "what waits for a class that was given up waits on": swap(
            e, "crashed", "core.lives.give_up(agent.agent_class)", "pass"
        ),
        "who was given up is counted as coming": swap(
            e, "crashed", 'core.registry.move(agent, "gave_up")', "agent.state = AgentState.WAITING"
        ),
    }
