"""What a task offers besides its prompt: answers to choose from, and tools. As texts that a router reads, and counted.

Both are written as outcome sets have them (`flowray.routing.data`), so that a router which was trained on those reads
the same in service. Answers are a list in quotes, `['yes', 'no']`; tools are "name: description", between " ; ".
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from flowray.errors import InvalidTask

COUNTS = ("n_tools", "n_params", "n_options")  # tools, parameters of all of them together, answers to choose from
MOST = 1 << 20  # characters of either text, and of whatever is counted
_MOST_PARSED = 100_000  # characters
_BETWEEN = " ; "
_SCHEMAS = ("parameters", "input_schema", "inputSchema")  # where tools have theirs: OpenAI, Anthropic, MCP


def choices_of(given: str | Iterable[str]) -> tuple[str, dict[str, float]]:
    """The answers as a router reads them, and their number; a text stays as it is.

    Raises:
        InvalidTask: it is neither a text nor several, or too long.
    """
    if isinstance(given, str):
        counted = count_choices(given)
        return _bounded("choices", given), {} if counted is None else {"n_options": counted}
    listed = list(given)
    if any(not isinstance(one, str) for one in listed):
        raise InvalidTask("choices", "wants a text, or several")
    if not listed:
        return "", {}
    return _bounded("choices", repr(listed)), {"n_options": float(len(listed))}


def tools_of(given: str | Iterable[str | Mapping[str, Any]]) -> tuple[str, dict[str, float]]:
    """The tools as a router reads them, how many they are, and how many parameters they have, where all say so.

    Raises:
        InvalidTask: one of them is no description of a tool, or all together are too long.
    """
    if isinstance(given, str):
        counted = count_tools(given)
        return _bounded("tools", given), {} if counted is None else {"n_tools": counted}
    described = [_tool(one) for one in given]
    if not described:
        return "", {}
    counts = {"n_tools": float(len(described))}
    params = [n_params for _, n_params in described if n_params is not None]
    if len(params) == len(described):
        counts["n_params"] = float(sum(params))
    return _bounded("tools", _BETWEEN.join(text for text, _ in described)), counts


def count_tools(tools: str) -> float | None:
    """How many there are in a text; None where there is none."""
    return float(tools.count(_BETWEEN) + 1) if tools else None


def count_choices(choices: str) -> float | None:
    """How many there are: in a list, or a mapping of lists, in JSON or Python's notation; None in any other."""
    if not choices or len(choices) > _MOST_PARSED:
        return None
    try:
        value = ast.literal_eval(choices)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None  # the text is still there for the router to read
    if isinstance(value, dict):
        value = next((inner for inner in value.values() if isinstance(inner, list)), value)
    return float(len(value)) if isinstance(value, list | tuple | dict) else None


def checked_counts(told: Mapping[str, float]) -> dict[str, float]:
    """What a caller counted.

    Raises:
        InvalidTask: nobody asks for that, or it is no number of things.
    """
    if not isinstance(told, Mapping):
        raise InvalidTask("counts", f"wants numbers by their names ({', '.join(COUNTS)}), got {type(told).__name__}")
    for name, value in told.items():
        if name not in COUNTS:
            raise InvalidTask("counts", f"has no {name!r}; there are {', '.join(COUNTS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
            raise InvalidTask("counts", f"{name} must be a number from 0 to {MOST:,}, got {value!r}")
    return {name: float(value) for name, value in told.items()}


def _tool(one: str | Mapping[str, Any]) -> tuple[str, int | None]:
    """Its "name: description", and how many parameters, where that is told."""
    if isinstance(one, str):
        return one.replace(_BETWEEN, "; "), None
    if not isinstance(one, Mapping):
        raise InvalidTask("tools", f"a tool is 'name: description', or a mapping with these, got {type(one).__name__}")
    inner = one.get("function")
    if isinstance(inner, Mapping):  # as OpenAI wraps them
        one = inner
    name, description = one.get("name"), one.get("description") or ""
    if not isinstance(name, str) or not name:
        raise InvalidTask("tools", f"a tool has a name, which is a str, got {name!r}")
    if not isinstance(description, str):
        raise InvalidTask("tools", f"the description of {name!r} must be a str, got {type(description).__name__}")
    text = f"{name}: {description}" if description else name
    return text.replace(_BETWEEN, "; "), _params(name, one)


def _params(name: str, one: Mapping[str, Any]) -> int | None:
    schema = next((one[key] for key in _SCHEMAS if one.get(key) is not None), None)
    if schema is None:
        return None
    if isinstance(schema, Mapping):
        schema = schema.get("properties", ())  # a schema without any is that of a tool without parameters
    if isinstance(schema, str) or not isinstance(schema, Mapping | list | tuple):
        raise InvalidTask("tools", f"the parameters of {name!r} must be a JSON schema or a list of names")
    return len(schema)


def _bounded(field: str, text: str) -> str:
    if len(text) > MOST:
        raise InvalidTask(field, f"{len(text)} characters; longer than {MOST}")
    return text
