"""What a caller is told when a task cannot be taken: why, what was probably meant, and when to try again."""

from __future__ import annotations

from difflib import get_close_matches

from flowray.core.queueing import Lane
from flowray.core.registry import Registry
from flowray.core.states import AgentState


def why_nobody(lane: Lane, registry: Registry) -> str:
    """No agent can run the tasks of this lane: why."""
    key = lane.key
    broken = [a for one in lane.classes for a in one.agents if a.failure is not None]
    if broken and broken[0].failure is not None:
        return f"its agents do not start: {broken[0].id}: {broken[0].failure.type}: {broken[0].failure.message}"
    known = registry.capabilities()
    missing = [need for need in key.needs if need not in known]
    if missing:
        close = get_close_matches(missing[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the team has: {', '.join(known) or 'no agents'}"
        return f"no agent has {missing[0]!r}; {hint}"
    wanted = [f"tier {key.tier!r}" if key.tier else "", f"agent {key.agent!r}" if key.agent else ""]
    wanted.append(f"all of {', '.join(key.needs)}" if key.needs else "")
    return f"no agent with {' and '.join(w for w in wanted if w) or 'anything at all: the team is empty'}"


def retry_after_s(registry: Registry, open_tasks: int) -> float:
    """Until about a twentieth of what is open should be done, by the agents' own average run times."""
    ready = [a for a in registry.agents() if a.state is AgentState.READY]
    slots = sum(a.slots for a in ready)
    measured = [a.service_s for a in ready if a.service_s >= 0]
    if not slots or not measured:
        return 1.0
    return min(30.0, max(0.05, 0.05 * open_tasks * sum(measured) / len(measured) / slots))
