"""One configuration: a YAML file, then the environment, then overrides; checked at the edge, frozen inside.

    name: audit
    tiers:  {secondary: {agents: 16, cpu_share: 0.4}}
    agents: [{use: "mypackage.agents:Writer", tier: primary, count: 3}]

Environment variables spell the path with double underscores: FLOWRAY_TIERS__SECONDARY__AGENTS=8. Whatever is wrong
raises ConfigError with the dotted path of the field and, for a misspelt name, the one that was probably meant.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct, structs

from flowray.bridges import address
from flowray.bridges.config import BridgeConfig
from flowray.core.policy import CorePolicy
from flowray.core.retraining import RetrainConfig
from flowray.core.rollout import RolloutPolicy
from flowray.errors import ConfigError
from flowray.mesh.lanes import TalkLimits
from flowray.routing.config import AskingConfig
from flowray.store.config import StoreConfig

ENVIRONMENT_PREFIX = "FLOWRAY_"
Scalar = float | int | str | bool | list[str] | None


class TierConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A class of agents with a share of the cluster."""

    agents: int = 1  # agents the share is meant for: one agent reserves share / agents
    cpu_share: float = 0.1  # of the cluster's CPUs, 0..1
    memory_share: float = 0.1  # of the cluster's memory, 0..1; reserved for placement only, it is no limit
    labels: dict[str, str] = {}  # node labels its agents must find, as Ray's label selectors ("a", "!a", "in(a,b)")
    agents_per_block: int = 1  # agents placed together: one placement group holds this many
    agents_per_actor: int = 1  # light agents that share one process, and die with it
    warm: int = 1  # processes of each class that are started before an agent needs one, where there is room
    spread: bool = True  # put a block's agents on different nodes where there are several

    def __post_init__(self) -> None:
        if self.agents < 1:
            raise ConfigError("agents", f"must be at least 1, got {self.agents}")
        for name in ("cpu_share", "memory_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(name, f"must be between 0 and 1, got {getattr(self, name)}")
        if not 1 <= self.agents_per_block <= 64:
            raise ConfigError("agents_per_block", f"must be between 1 and 64, got {self.agents_per_block}")
        if not 1 <= self.agents_per_actor <= 1000:
            raise ConfigError("agents_per_actor", f"must be between 1 and 1000, got {self.agents_per_actor}")
        if not 0 <= self.warm <= 64:
            raise ConfigError("warm", f"must be between 0 and 64, got {self.warm}")


DEFAULT_TIERS: dict[str, TierConfig] = {
    "orchestrator": TierConfig(agents=1, cpu_share=0.1, memory_share=0.1),
    "primary": TierConfig(agents=3, cpu_share=0.3, memory_share=0.3),
    "secondary": TierConfig(agents=16, cpu_share=0.4, memory_share=0.4, agents_per_block=4),
    "specialist": TierConfig(agents=4, cpu_share=0.2, memory_share=0.2),
}


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Agents of one class. What is left out comes from the class's own `@flowray.agent(...)`."""

    use: str  # "module:Class" or "module:function"
    name: str = ""  # "" takes the class's name in lower case; agents are called "<name>-<n>"
    tier: str = ""  # "" takes the class's own, or "secondary"
    count: int = 1  # agents of this class
    capabilities: list[str] | None = None  # what they can do; left out, what the class says
    slots: int | None = None  # attempts that one agent runs at once
    num_cpus: float | None = None  # reserved for one agent; left out, its tier's share divided by the tier's agents
    options: dict[str, Scalar] = {}  # constructor arguments

    def __post_init__(self) -> None:
        module, colon, attribute = self.use.partition(":")
        if not (module and colon and attribute):
            raise ConfigError("use", f"wants 'module:Class', got {self.use!r}")
        if self.count < 1:
            raise ConfigError("count", f"must be at least 1, got {self.count}")
        if self.slots is not None and self.slots < 1:
            raise ConfigError("slots", f"must be at least 1, got {self.slots}")
        if self.num_cpus is not None and self.num_cpus < 0:
            raise ConfigError("num_cpus", f"must not be negative, got {self.num_cpus}")


class RayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Ray cluster underneath."""

    address: str = ""  # of a running cluster ("auto" or host:port); "" joins RAY_ADDRESS, else starts an embedded one
    num_cpus: int | None = None  # of the embedded one; left out, the machine's
    object_store_mb: int = 512  # of the embedded one
    dashboard: bool = False  # of the embedded one, on loopback
    fast_failure_detection: bool = True  # notice lost processes and nodes in about a second instead of 14 to 64
    stopped_s: float = 1.0  # a process that has been stopped (SIGSTOP) for so long is ended; 0: never
    agent_output: bool = True  # show what agents print in the driver's terminal
    temp_dir: str = ""  # Ray's session directory; "" for Ray's default
    template: bool = True  # on nodes started here, fork agents from a process that has imported everything they need
    coordinator_labels: dict[str, str] = {}  # with store.url: labels its node must have, wherever it goes, as a tier's
    preload: list[str] = []  # modules that forked agents find imported, besides flowray's own; they may start no thread
    store: str = "embedded"  # of `flowray up`, for Ray's tables: "embedded" (RocksDB), "memory", or the URL of a Redis
    store_path: str = ""  # where the embedded one has its directory, on a local disk; "" for ~/.flowray/<name>
    reconnect_s: float = 120.0  # how long what is in Ray (nodes, agents, drivers) waits for a lost control store

    def __post_init__(self) -> None:
        if self.num_cpus is not None and self.num_cpus < 1:
            raise ConfigError("num_cpus", f"must be at least 1, got {self.num_cpus}")
        if self.object_store_mb < 80:
            raise ConfigError("object_store_mb", f"Ray needs at least 80, got {self.object_store_mb}")
        if not 0 <= self.stopped_s <= 3600:
            raise ConfigError("stopped_s", f"must be between 0 (never) and 3600 seconds, got {self.stopped_s}")
        if not 5 <= self.reconnect_s <= 86_400:
            raise ConfigError("reconnect_s", f"must be between 5 and 86400 seconds, got {self.reconnect_s}")
        if self.store not in ("embedded", "memory"):
            if self.store_path:
                raise ConfigError("store_path", "is the embedded store's", "leave it out, or set store: embedded")
            _check_redis(self.store)
        for module in self.preload:
            if not all(part.isidentifier() for part in module.split(".")):
                raise ConfigError("preload", f"wants names of modules, got {module!r}")


def _check_redis(store: str) -> None:
    """Raises ConfigError where this names no Redis, or holds a password: clients are told the configuration."""
    try:
        address.check(store, "redis-streams")
    except ConfigError as error:
        hint = error.hint or "embedded, memory, redis://host:port, or env:NAME for a URL with a password"
        raise ConfigError("store", error.problem, hint) from None
    if store.startswith("unix:"):
        raise ConfigError("store", "Ray reaches a Redis by TCP alone", "redis://host:port")


class MeshConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who can reach the runtime."""

    listen: str = ""  # host:port for clients outside the cluster, with TLS and a token; "" for none
    talk: TalkLimits = TalkLimits()  # bounds of what agents say to one another

    def __post_init__(self) -> None:
        host, colon, port = self.listen.rpartition(":")
        if self.listen and not (colon and host and port.isdecimal() and int(port) <= 65_535):
            raise ConfigError("listen", f"wants host:port, got {self.listen!r}")


class RouterConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The router that is asked who does a task well. `core.routing.enabled` switches it on."""

    artifact: str = ""  # directory of a trained router; "" for one that knows only what it learns here
    history: str = ""  # a set of outcomes: what the agents did before, by the names of their classes; "" for nothing
    through: Literal["local", "serve"] = "local"  # who is asked: a copy in the coordinator, or Ray Serve before it
    served: str = "flowray-router"  # name of the Serve application
    serve_from: int = 0  # "local": questions at once from which Serve is asked before the copy; 0 for never
    asking: AskingConfig = AskingConfig()  # of Serve; its deadline is at most half of core.routing.within_s
    rollout: RolloutPolicy = RolloutPolicy()  # how another version of it comes into force
    retrain: RetrainConfig = RetrainConfig()  # whether and when such versions are made of what its tasks came to

    def __post_init__(self) -> None:
        if not self.served:
            raise ConfigError("served", "must not be empty", "name what deploy_router deploys: flowray-router")
        if self.serve_from < 0:
            raise ConfigError("serve_from", f"must not be negative, got {self.serve_from}")
        if self.retrain.enabled and not self.artifact:
            raise ConfigError("retrain.enabled", "needs a trained router to go on from", "name one in router.artifact")
        if self.history and not self.artifact:
            raise ConfigError("history", "is read by a trained router alone", "name one in router.artifact")


class LimitsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes and waits at the edges."""

    inline_bytes: int = 64 * 1024  # payloads and results up to this travel in messages; larger ones by reference
    payload_bytes: int = 1 << 30  # and above this they are refused
    batch_tasks: int = 512  # tasks in one message
    batch_bytes: int = 4 << 20  # bytes in one message, roughly
    unavailable_after_s: float = 60.0  # how long a call waits for a coordinator that does not answer

    def __post_init__(self) -> None:
        if not 0 <= self.inline_bytes <= 1 << 20:
            raise ConfigError("inline_bytes", f"must be between 0 and {1 << 20}, got {self.inline_bytes}")
        if self.payload_bytes < self.inline_bytes:
            raise ConfigError("payload_bytes", f"must be at least inline_bytes, got {self.payload_bytes}")
        for name in ("batch_tasks", "batch_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be at least 1, got {getattr(self, name)}")
        if self.unavailable_after_s <= 0:
            raise ConfigError("unavailable_after_s", f"must be positive, got {self.unavailable_after_s}")


class RetentionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the journal remembers what has ended. Open tasks are kept whatever their age."""

    outcomes_s: float = 7 * 86_400.0  # outcomes, and with them idempotency keys
    dead_letters_s: float = 14 * 86_400.0  # dead letters, with all that is needed to replay them
    sweep_every_s: float = 600.0  # between two sweeps

    def __post_init__(self) -> None:
        for name in ("outcomes_s", "dead_letters_s", "sweep_every_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"must be positive, got {getattr(self, name)}")
        if self.dead_letters_s < self.outcomes_s:
            raise ConfigError("dead_letters_s", "must be at least outcomes_s: a dead letter has its outcome")


class JobConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `flowray run` does with its input: a job class, or one task for each row or file."""

    use: str = ""  # "module:JobClass", called with the input's path and `options`; "" maps input to tasks one to one
    options: dict[str, Scalar] = {}  # keyword arguments of the job class
    needs: list[str] = []  # of every task, when mapping
    prompt: str = ""  # column of the prompt, when mapping rows; "" makes the whole row the payload
    key: str = ""  # column that identifies a row; "" takes its number and content
    glob: str = "**/*"  # which files, when mapping a directory
    priority: int = 0  # of every task, when mapping; higher runs first
    deadline_s: float | None = None  # of every task, when mapping: seconds from its acceptance to its end
    max_attempts: int = 3  # of every task, when mapping: attempts that may fail by the agent's own code
    open_tasks: int = 2048  # tasks handed in and not done at any time: bounds the driver's memory

    def __post_init__(self) -> None:
        for name in ("max_attempts", "open_tasks"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be at least 1, got {getattr(self, name)}")
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise ConfigError("deadline_s", f"must be positive, got {self.deadline_s}")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a runtime is started with."""

    name: str = "default"  # several runtimes share a cluster under different names
    tiers: dict[str, TierConfig] = msgspec.field(
        default_factory=lambda: dict(DEFAULT_TIERS)
    )  # those named here are changed or added; the other defaults stay
    agents: list[AgentConfig] = []
    job: JobConfig | None = None  # for `flowray run`
    journal: str = ""  # directory that outlives the run, so that the next one resumes; "" for one that goes with it
    core: CorePolicy = CorePolicy()
    store: StoreConfig = StoreConfig()
    ray: RayConfig = RayConfig()
    mesh: MeshConfig = MeshConfig()
    bridges: list[BridgeConfig] = []  # for `flowray bridge`: topics to and from Redis or RabbitMQ
    router: RouterConfig = RouterConfig()
    limits: LimitsConfig = LimitsConfig()
    retention: RetentionConfig = RetentionConfig()
    seed: int | None = None  # of the coordinator's choices; left out, a new one each time

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError("name", f"wants letters, digits, '-' and '_', got {self.name!r}")
        for number, one in enumerate(self.agents):
            if one.tier and one.tier not in self.tiers:
                raise ConfigError(f"agents[{number}].tier", f"unknown tier {one.tier!r}", _meant(one.tier, self.tiers))
        if self.store.url:
            self._check_postgres()
        elif self.ray.coordinator_labels:
            raise ConfigError(
                "ray.coordinator_labels", "is for a coordinator that may move, which needs store.url", "leave it out"
            )
        total = sum(tier.cpu_share for tier in self.tiers.values())
        if total > 1.0 + 1e-9:
            raise ConfigError("tiers", f"the tiers' cpu_share add up to {total:.2f}, more than 1")

    def _check_postgres(self) -> None:
        """Each runtime has a schema of its own; and what must lie beside a journal's file cannot be had."""
        if not self.store.schema:
            try:
                store = dataclasses.replace(self.store, schema=f"flowray_{self.name}")
            except ConfigError as error:
                raise ConfigError("store.schema", f"must be given for a runtime called {self.name!r}") from error
            structs.force_setattr(self, "store", store)
        if self.router.retrain.enabled:
            raise ConfigError(
                "router.retrain.enabled",
                "leaves candidates beside the journal's file, and with store.url there is none",
                "train with `flowray router train`, or leave store.url out",
            )


def load(
    file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Read, merge and check a configuration. `overrides` maps dotted paths to values and wins over everything.

    Raises:
        ConfigError: the file cannot be read or is no YAML mapping, or a value is wrong.
    """
    data: dict[str, Any] = {}
    if file is not None:
        data = _read(Path(file))
    for path, text in _from_environment(environment or {}):
        _put(data, path, text)
    for dotted, value in (overrides or {}).items():
        _put(data, dotted.split("."), value)
    tiers = data.get("tiers")
    if tiers is None or isinstance(tiers, dict):
        data["tiers"] = _merged_tiers(tiers or {})
    config: Config = _build(Config, data, "")
    return config


def beside_results(config: Config, *, volatile: bool = False) -> Config:
    """The configuration for a journal that needs to live no longer than what lies beside it.

    A container's file system (overlay) is refused for a journal that must outlive everything; for one that goes with
    its run or its results it is as good as they are. `volatile` accepts memory as well.
    """
    store = dataclasses.replace(
        config.store,
        allow_volatile=config.store.allow_volatile or volatile,
        allow_filesystems=tuple(dict.fromkeys((*config.store.allow_filesystems, "overlay", "overlayfs"))),
    )
    return structs.replace(config, store=store)


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read: {error.strerror}") from error
    try:
        data = msgspec.yaml.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(str(file), f"is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(str(file), "wants a mapping of names to values at the top level")
    return data


def _from_environment(environment: Mapping[str, str]) -> Iterable[tuple[list[str], Any]]:
    """FLOWRAY_A__B=value becomes (["a", "b"], value); names without a known first part are somebody else's."""
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name[len(ENVIRONMENT_PREFIX) :].lower().split("__")
            if path[0] in Config.__struct_fields__:
                try:
                    yield path, msgspec.yaml.decode(environment[name].encode())
                except msgspec.DecodeError as error:
                    raise ConfigError(name, f"is not a YAML value: {error}") from error


def _put(data: dict[str, Any], path: list[str], value: Any) -> None:
    at = data
    for position, part in enumerate(path[:-1]):
        below = at.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(".".join(path[: position + 1]), "is a value; nothing can be set below it")
        at = below
    at[path[-1]] = value


def _merged_tiers(tiers: dict[str, Any]) -> dict[str, Any]:
    """The default tiers with the given ones laid over them, field by field."""
    merged: dict[str, Any] = {name: msgspec.to_builtins(tier) for name, tier in DEFAULT_TIERS.items()}
    for name, tier in tiers.items():
        merged[name] = {**merged.get(name, {}), **tier} if isinstance(tier, dict) else tier
    return merged


def _build(wanted: Any, value: Any, path: str) -> Any:
    """Convert plain data to `wanted`, naming the exact path of whatever is wrong."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (typing.Union, types.UnionType) and any(_is_struct(a) for a in arguments):
        return None if value is None else _build(next(a for a in arguments if _is_struct(a)), value, path)
    if _is_struct(wanted):
        return _build_struct(wanted, value, path)
    if origin is dict and _is_struct(arguments[1]) and isinstance(value, dict):
        return {str(k): _build(arguments[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is list and _is_struct(arguments[0]) and isinstance(value, list):
        return [_build(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise ConfigError(path, str(error).replace(" - at `$", " - at `" + path)) from error


def _build_struct(wanted: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(path or "configuration", f"wants a mapping, got {value!r}")
    hints = typing.get_type_hints(wanted)
    fields = [field.name for field in (structs if issubclass(wanted, Struct) else dataclasses).fields(wanted)]
    built = {}
    for key, below in value.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise ConfigError(where, "there is no such setting", _meant(str(key), fields))
        built[key] = _build(hints[key], below, where)
    try:
        return wanted(**built)
    except TypeError as error:
        raise ConfigError(path, str(error)) from error
    except ConfigError as error:
        last = error.field.rpartition(".")[2]
        raise ConfigError(f"{path}.{last}" if path else error.field, error.problem, error.hint) from error


def _is_struct(wanted: Any) -> bool:
    return isinstance(wanted, type) and (issubclass(wanted, Struct) or dataclasses.is_dataclass(wanted))


def _meant(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
