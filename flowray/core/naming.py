"""Names: of classes of agents, from the ids of their agents and from those in other systems; and of attempts."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MAX_NAME = 80  # characters of a class's name, and room for a number


def class_of(agent_id: str) -> str:
    """The class of an agent, which is called "<class>-<number>"."""
    return agent_id.rpartition("-")[0]


def attempt_key(task_id: str, attempt: int) -> str:
    """What an attempt is called: two of one task may run at once."""
    return f"{task_id}#{attempt}"


def class_names(agent_ids: Iterable[str]) -> list[str]:
    """The ids in the characters that a name may have, unique: of two that become the same the later is numbered."""
    names: dict[str, None] = {}
    for agent_id in agent_ids:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", agent_id).strip("-._")[:_MAX_NAME] or "agent"
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain}.{number}"
        names[name] = None
    return list(names)
