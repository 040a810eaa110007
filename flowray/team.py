"""Find what a team file names: `module:Class`, or `path/to/file.py:Class` relative to the team file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from flowray.agents import check_runnable, with_description
from flowray.config import AgentConfig, Config, JobConfig
from flowray.errors import ConfigError, FlowrayError
from flowray.jobs import Job, LocalAgent

FILE_MODULE = "flowray_team_"  # begins the name of a module loaded from a path: no other process can import it


def is_file(use: str) -> bool:
    """Does `use` name a file instead of a module?"""
    return use.rpartition(":")[0].endswith(".py")


def load_target(use: str, base: Path, field: str) -> Any:
    """The object that `use` names. Modules are looked for beside the team file too.

    Raises:
        ConfigError: there is no such file, module or attribute, or importing it fails. `field` is where it was said.
        MissingExtra: as raised by the module itself.
    """
    module_name, colon, attribute = use.rpartition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(field, f"wants 'module:Class', got {use!r}")
    module = _load_file(base / module_name, field) if is_file(use) else _load_module(module_name, base, field)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(module) if not name.startswith("_")]
            raise ConfigError(field, f"{module_name} has no {attribute!r}", f"it has: {', '.join(names[:20])}")
        found = getattr(found, part)
    return found


def load_agent(config: AgentConfig, base: Path, field: str) -> Callable[..., Any]:
    """The class or function of an agent, checked to be one."""
    target: Callable[..., Any] = load_target(config.use, base, f"{field}.use")
    try:
        check_runnable(target)
    except ConfigError as error:
        raise ConfigError(f"{field}.use", str(error)) from error
    return target


def local_team(agents: Iterable[AgentConfig], base: Path) -> list[LocalAgent]:
    """One agent of each kind in this process, for a sequential run.

    Raises:
        ConfigError: one cannot be loaded or made.
    """
    team = []
    for number, config in enumerate(agents):
        field = f"agents[{number}]"
        target = load_agent(config, base, field)
        name = config.name or getattr(target, "__name__", "agent").lower()
        try:
            made = LocalAgent.make(name, target, config.options)
        except FlowrayError:
            raise
        except Exception as error:  # a constructor may raise anything: it is the user's code
            raise ConfigError(field, f"cannot be made: {type(error).__name__}: {error}") from error
        capabilities = None if config.capabilities is None else frozenset(config.capabilities)
        team.append(replace(made, description=with_description(target, capabilities=capabilities)))
    return team


def make_job(config: JobConfig, base: Path, path: Path) -> Job:
    """The job that `job.use` names, for this input.

    Raises:
        ConfigError: it cannot be loaded or made, or is no job.
    """
    target = load_target(config.use, base, "job.use")
    try:
        job = target(path, **config.options)
    except FlowrayError:
        raise
    except TypeError as error:
        raise ConfigError("job.options", f"{config.use} does not take them: {error}") from error
    if not isinstance(job, Job):
        raise ConfigError("job.use", f"{config.use} is no job", "a job has begin, on_result, expected and finish")
    return job


def resolved(config: Config, base: Path) -> Config:
    """The configuration with every `file.py:Class` made absolute, and `base` among the places to import from."""
    _look_in(base)
    agents = [structs.replace(a, use=str((base / a.use).resolve())) if is_file(a.use) else a for a in config.agents]
    return structs.replace(config, agents=agents)


def _look_in(base: Path) -> None:
    """Modules may lie beside the team file. Behind everything else, so that nothing installed is hidden by it."""
    directory = str(base.resolve())
    if directory not in sys.path:
        sys.path.append(directory)


def _load_module(name: str, base: Path, field: str) -> Any:
    _look_in(base)
    try:
        return importlib.import_module(name)
    except FlowrayError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or name
        hint = (
            f"installed, or beside the team file in {base.resolve()}?" if missing in (name, name.split(".")[0]) else ""
        )
        raise ConfigError(field, f"there is no module {missing!r}", hint) from error
    except Exception as error:  # importing runs the user's code
        raise ConfigError(field, f"importing {name} fails: {type(error).__name__}: {error}") from error


def _load_file(path: Path, field: str) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(field, f"there is no file {path}")
    name = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FlowrayError:
        del sys.modules[name]
        raise
    except Exception as error:  # importing runs the user's code
        del sys.modules[name]
        raise ConfigError(field, f"importing {path} fails: {type(error).__name__}: {error}") from error
    return module
