"""From a class (or its name) to an AgentSpec that another process can start."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flowray.agents import check_runnable, check_verifying, with_description
from flowray.config import TierConfig
from flowray.core.model import AgentSpec, StatefulSpec
from flowray.errors import ConfigError
from flowray.stateful import is_stateful
from flowray.team import FILE_MODULE, load_target

DEFAULT_TIER = "secondary"
_MAX_CODE_BYTES = 8 << 20


def make_spec(
    target: Any,
    *,
    tiers: Mapping[str, TierConfig],
    name: str | None = None,
    count: int = 1,
    tier: str | None = None,
    capabilities: Iterable[str] | None = None,
    slots: int | None = None,
    num_cpus: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> AgentSpec:
    """Check everything that can be checked before a process is started.

    Raises:
        ConfigError: the target cannot be imported or is no agent, or an argument is out of range.
    """
    found = load_target(target, Path.cwd(), "use") if isinstance(target, str) else target
    check_runnable(found)
    check_verifying(found)
    described = with_description(
        found,
        capabilities=None if capabilities is None else frozenset(_checked_capabilities(capabilities)),
        tier=tier,
        slots=slots,
        num_cpus=num_cpus,
    )
    chosen_name = name or getattr(found, "__name__", "agent").lower().strip("_<>")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", chosen_name):
        raise ConfigError("name", f"wants letters, digits, '.', '_' and '-', got {chosen_name!r}")
    chosen_tier = described.tier or DEFAULT_TIER
    if chosen_tier not in tiers:
        raise ConfigError("tier", f"unknown tier {chosen_tier!r}", f"known: {', '.join(tiers)}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError("count", f"must be a whole number of at least 1, got {count!r}")
    _check_options(found, options or {})
    stateful = None
    if is_stateful(found):
        if described.slots != 1:
            raise ConfigError("slots", "must be 1 for a stateful agent: its inputs are applied one after the other")
        usual = StatefulSpec()
        stateful = StatefulSpec(
            standby=described.standby or usual.standby,
            snapshot_every=described.snapshot_every or usual.snapshot_every,
            snapshot_every_s=described.snapshot_every_s or usual.snapshot_every_s,
        )
    # A file is loaded again where it can be found, so that a later start has its newest code; elsewhere the code that
    # travels along is used.
    in_file = isinstance(target, str) and target.rpartition(":")[0].endswith(".py")
    by_name = str(Path(target).absolute()) if in_file else _importable_as(found)
    return AgentSpec(
        name=chosen_name,
        tier=chosen_tier,
        capabilities=tuple(sorted(described.capabilities)),
        count=count,
        slots=described.slots,
        target=by_name,
        code=b"" if by_name and not in_file else _pickled(found),
        paths=tuple(dict.fromkeys(os.path.abspath(p or ".") for p in sys.path if _is_own(p))),  # noqa: PTH100
        options=dict(options or {}),
        num_cpus=described.num_cpus,
        memory_bytes=described.memory_bytes,
        stateful=stateful,
    )


def _checked_capabilities(capabilities: Iterable[str]) -> list[str]:
    if isinstance(capabilities, str):
        raise ConfigError("capabilities", f"wants a set of strings, not one: {{{capabilities!r}}}")
    return list(capabilities)


def _check_options(target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    if not options:
        return
    if not inspect.isclass(target):
        raise ConfigError("options", "a function takes no options; make it a class")
    try:
        inspect.signature(target).bind(**options)
    except TypeError as error:
        raise ConfigError("options", f"{target.__name__} does not take them: {error}") from error


def _importable_as(target: Callable[..., Any]) -> str:
    """ "module:qualname" if other processes can import the target; "" if it must travel by value."""
    module, qualname = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
    if not module or module == "__main__" or "<" in qualname or module.startswith(FILE_MODULE):
        return ""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return f"{module}:{qualname}" if found is target else ""


def _pickled(target: Callable[..., Any]) -> bytes:
    from ray import cloudpickle  # only for what no other process can import by its name

    if target.__module__.startswith(FILE_MODULE):
        cloudpickle.register_pickle_by_value(sys.modules[target.__module__])
    try:
        code: bytes = cloudpickle.dumps(target)
    except Exception as error:  # pickling calls arbitrary __reduce__ methods
        raise ConfigError("target", f"{target!r} cannot be sent to another process: {error}") from error
    if len(code) > _MAX_CODE_BYTES:
        raise ConfigError("target", f"{target!r} drags {len(code)} bytes along; the limit is {_MAX_CODE_BYTES}")
    return code


def _is_own(path: str) -> bool:
    """Is this entry of sys.path the user's own (not the installation's)?"""
    return not path.startswith((sys.prefix, sys.base_prefix)) and not path.endswith(".zip")
