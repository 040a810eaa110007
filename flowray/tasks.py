"""From a caller's arguments to a valid Task, with an error that names the argument when it cannot be one."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import structs

from flowray.core.model import Payload, Task, TaskId
from flowray.core.routing import WEIGHTS, RoutingPolicy
from flowray.errors import ConfigError, InvalidTask
from flowray.offers import checked_counts, choices_of, tools_of

_MAX_PROMPT = 1 << 20  # characters; longer texts are payloads
_MAX_NEEDS = 64
_MAX_ENTITY = 512  # characters
_counter = itertools.count()
_process = os.urandom(5).hex()


def new_task_id() -> TaskId:
    """Unique, and sorts by the time it was made."""
    return TaskId(f"{time.time_ns() // 1_000_000:011x}-{next(_counter) & 0xFFFFFF:06x}-{_process}")


def make_task(
    pack: Callable[[Any, str], Payload | None],
    work: Any = None,
    *,
    prompt: str | None = None,
    payload: Any = None,
    needs: Iterable[str] = (),
    priority: int = 0,
    deadline_s: float | None = None,
    attempt_timeout_s: float | None = None,
    max_attempts: int = 3,
    key: str = "",
    tier: str = "",
    agent: str = "",
    labels: Mapping[str, str] | None = None,
    choices: str | Iterable[str] = "",
    tools: str | Iterable[str | Mapping[str, Any]] = "",
    counts: Mapping[str, float] | None = None,
    quality: float | None = None,
    least_quality: float | None = None,
    max_cost_usd: float | None = None,
    weights: Mapping[str, float] | None = None,
    idempotent: bool = False,
    fallback: str = "",
    exclusive: bool = False,
    builds_on: str = "",
    entity: str = "",
    new_id: Callable[[], TaskId] = new_task_id,
) -> Task:
    """Check and build. `work` is the prompt when it is a str, the payload otherwise.

    Raises:
        InvalidTask: a value is out of range.
        PayloadError: the payload cannot be serialised or is too large.
    """
    if isinstance(work, str):
        prompt = work if prompt is None else prompt
    elif work is not None:
        payload = work if payload is None else payload
    prompt = prompt or ""
    if not isinstance(prompt, str):
        raise InvalidTask("prompt", f"must be a str, got {type(prompt).__name__}; other values are payloads")
    if len(prompt) > _MAX_PROMPT:
        raise InvalidTask("prompt", f"{len(prompt)} characters; longer than {_MAX_PROMPT}: make it the payload")
    wanted = _checked_needs(needs)
    if isinstance(priority, bool) or not isinstance(priority, int) or not -1000 <= priority <= 1000:
        raise InvalidTask("priority", f"must be a whole number from -1000 to 1000, got {priority!r}")
    # From here on what a caller does not give is not looked at: most tasks have little of all this.
    if deadline_s is not None:
        _check_seconds("deadline_s", deadline_s, "the deadline is in the past")
    if attempt_timeout_s is not None:
        _check_seconds("attempt_timeout_s", attempt_timeout_s, "no attempt could end in time")
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 1:
        raise InvalidTask("max_attempts", f"must be a whole number of at least 1, got {max_attempts!r}")
    if not isinstance(key, str) or len(key) > 512:
        raise InvalidTask("key", "must be a str of at most 512 characters")
    names = "".join((key, tier, agent, *wanted))
    if not (prompt.isascii() and names.isascii()):
        _check_encodable(prompt=prompt, key=key, tier=tier, agent=agent, needs="".join(wanted))
    marks = dict(labels) if labels else {}
    if marks:
        if any(not isinstance(k, str) or not isinstance(v, str) for k, v in marks.items()):
            raise InvalidTask("labels", "must map str to str")
        _check_encodable(labels="".join((*marks, *marks.values())))
    answers = described = as_before = ""
    counted: dict[str, float] = {}
    if not isinstance(choices, str) or choices:
        offered = choices if isinstance(choices, str) else list(choices)
        if offered:
            answers, counted = choices_of(offered)
        # Keys of older journals are still repeats.
        as_before = offered if isinstance(offered, str) else "\n".join(offered)
    if tools != "":
        described, n_described = tools_of(tools)
        counted = counted | n_described
    if counts:
        counted = counted | checked_counts(counts)
    if quality is not None:
        _check_number("quality", quality, 1.0, "it is the share of the best expected success that is enough")
    if least_quality is not None:
        _check_number("least_quality", least_quality, 1.0, "every answer is worth that much")
    if max_cost_usd is not None:
        _check_number("max_cost_usd", max_cost_usd, math.inf, "no attempt is that cheap")
    weighed = _checked_weights(weights) if weights else {}
    if not isinstance(idempotent, bool):
        raise InvalidTask("idempotent", f"must be True (running it twice does no harm) or False, got {idempotent!r}")
    if not isinstance(fallback, str):
        raise InvalidTask("fallback", f"must be the name of a class of agents, got {fallback!r}")
    if not isinstance(exclusive, bool):
        raise InvalidTask("exclusive", f"must be True or False, got {exclusive!r}")
    if exclusive and idempotent:
        problem = (
            "an idempotent task may have two attempts at the same time, an exclusive one may not: choose one of them"
        )
        raise InvalidTask("exclusive", problem)
    origin = _checked_origin(builds_on) if builds_on != "" else ""
    if not isinstance(entity, str) or len(entity) > _MAX_ENTITY:
        raise InvalidTask("entity", f"must be a str of at most {_MAX_ENTITY} characters")
    if entity and not agent:
        raise InvalidTask("entity", "is what an input of a stateful agent is about: say which, by agent=")
    if not (answers.isascii() and described.isascii() and fallback.isascii() and origin.isascii() and entity.isascii()):
        _check_encodable(choices=answers, tools=described, fallback=fallback, builds_on=origin, entity=entity)
    packed = pack(payload, "payload")
    rare = (as_before, described, entity)
    return Task(
        id=new_id(),
        prompt=prompt,
        payload=packed,
        needs=wanted,
        tier=tier,
        agent=agent,
        priority=priority,
        deadline_s=deadline_s,
        attempt_timeout_s=attempt_timeout_s,
        max_attempts=max_attempts,
        key=key,
        fingerprint=_fingerprint(prompt, packed, *wanted, tier, agent, *filter(None, rare)) if key else "",
        labels=marks,
        choices=answers,
        tools=described,
        counts=counted,
        quality=quality,
        least_quality=least_quality,
        max_cost_usd=max_cost_usd,
        weights=weighed,
        idempotent=idempotent,
        fallback=fallback,
        exclusive=exclusive,
        builds_on=origin,
        entity=entity,
    )


def _checked_needs(needs: Iterable[str]) -> tuple[str, ...]:
    if needs == ():
        return ()
    if isinstance(needs, str):
        raise InvalidTask("needs", f"wants a set of capabilities, not one str: {{{needs!r}}}")
    wanted = tuple(sorted(set(needs)))
    for need in wanted:
        if not isinstance(need, str) or not need:
            raise InvalidTask("needs", "every capability is a non-empty str")
    if len(wanted) > _MAX_NEEDS:
        raise InvalidTask("needs", f"{len(wanted)} capabilities; at most {_MAX_NEEDS}")
    return wanted


def _checked_origin(builds_on: str) -> str:
    """The class of the agent."""
    if not isinstance(builds_on, str):
        raise InvalidTask("builds_on", f"must be the id of an agent, as outcomes have it, got {builds_on!r}")
    name, _, number = builds_on.rpartition("-")
    if not (name and number.isdecimal()):
        raise InvalidTask("builds_on", f"{builds_on!r} is no agent's id, as outcomes have it: <class>-<number>")
    return name


def _checked_weights(weights: Mapping[str, float]) -> dict[str, float]:
    weighed = dict(weights)
    for name, value in weighed.items():
        if name not in WEIGHTS:
            raise InvalidTask("weights", f"has no {name!r}; there are {', '.join(WEIGHTS)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidTask("weights", f"{name} must be a number, got {value!r}")
    try:
        structs.replace(RoutingPolicy(), **weighed)
    except ConfigError as error:
        raise InvalidTask("weights", f"{error.field.rpartition('.')[2]} {error.problem}") from error
    return {name: float(value) for name, value in weighed.items()}


def _check_encodable(**texts: str) -> None:
    for field, text in texts.items():
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidTask(field, f"is not valid Unicode text: {error.reason}") from error


def _check_seconds(field: str, value: float, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidTask(field, f"must be seconds, got {value!r}")
    if value <= 0:
        raise InvalidTask(field, f"must be positive, got {value!r}: {why}")


def _check_number(field: str, value: float, most: float, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most or value == math.inf:
        raise InvalidTask(field, f"must be above 0 and at most {most:g}, got {value!r}: {why}")


def _fingerprint(prompt: str, payload: Payload | None, *more: str) -> str:
    """A digest of what is asked, equal for a repeat. How urgently it is asked does not matter."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (prompt, *more):
        digest.update(len(part).to_bytes(8, "big") + part.encode("utf-8", "surrogatepass"))
    if payload is not None:
        body = payload.data if payload.data is not None else (payload.ref or "").encode()
        digest.update(payload.codec.encode() + body)
    return digest.hexdigest()
