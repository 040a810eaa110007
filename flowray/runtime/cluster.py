"""Starting or joining Ray: its environment, its token, and what of it belongs to us."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray

from flowray.config import Config
from flowray.errors import ConfigError, NotConnected
from flowray.runtime._ray_errors import brief
from flowray.runtime.template import deferred, setup
from flowray.runtime.template.quick import RayletGone, quick

NAMESPACE = "flowray"

_log = logging.getLogger("flowray")

# Ray notices a lost node in 14 s (its process killed) to 64 s (cut off) by default; with these in about 1 s to 4 s, and
# 64 busy processes on two cores caused no false alarm (measured). They must be the same on every node.
_FAST_FAILURE_DETECTION = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_timeout_ms_task_wait_for_death_info": "50",
    "RAY_core_worker_internal_heartbeat_ms": "100",
    "RAY_raylet_liveness_self_check_interval_ms": "1000",
}
_REACH_S = 5.0  # Ray itself tries for minutes to join a cluster that is not there, and cannot be interrupted
_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray 2.60 runs workers at nice 15; agents are the product here
    "RAY_maximum_gcs_destroyed_actor_cached_count": "5000",  # dead agents would otherwise fill the head's memory
    "RAY_task_actor_unavailable_retry_delay_base_ms": "20",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run script.py` would upload the working directory at each start
}


def ray_environment(config: Config) -> dict[str, str]:
    """Environment for every Ray process of a cluster that flowray starts: token on, quick failure detection."""
    environment = dict(_ALWAYS, RAY_AUTH_MODE="token")
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(int(config.ray.reconnect_s))
    if config.ray.fast_failure_detection:
        environment.update(_FAST_FAILURE_DETECTION)
    if config.ray.preload:
        environment[setup.PRELOAD] = ",".join(config.ray.preload)
    return environment


def system_config(config: Config) -> dict[str, int]:
    """The same where the environment is too late or too little: a head tells it to all nodes, agents and drivers.

    (What connects before it is told goes by its environment; so both say it.) By itself Ray ends every process of its
    own, drivers among them and without an exception, that has not reached the control store for 60 s. A node that
    left while its head was being restarted would take its agents with it.
    """
    said = _FAST_FAILURE_DETECTION if config.ray.fast_failure_detection else {}
    settings = {name.removeprefix("RAY_"): int(value) for name, value in said.items()}
    return settings | {"gcs_rpc_server_reconnect_timeout_s": int(config.ray.reconnect_s)}


def _require_listener(address: str) -> None:
    """Raise NotConnected when `host:port` cannot be reached. Other spellings ("auto") are left to Ray."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise NotConnected(f"no Ray cluster at {address}: {error}") from error


def ensure_token() -> Path:
    """The cluster token's file, made if there is none; readable by its owner alone (Ray itself writes 0644)."""
    configured = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(configured) if configured else Path.home() / ".ray" / "auth_token"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    elif path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return path


def join_or_start(config: Config) -> bool:
    """Make Ray usable in this process. True when an embedded cluster was started for it.

    A process that has initialised Ray already keeps what it has.

    Raises:
        NotConnected: the cluster named by the configuration or by RAY_ADDRESS cannot be joined.
        ConfigError: Ray's authentication is switched off in the environment.
        RayletGone: the embedded cluster did not come up, twice.
    """
    if ray.is_initialized():
        return False
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        raise ConfigError("RAY_AUTH_MODE", "is 'disabled': anyone who reaches Ray's ports could run code", "unset it")
    address = config.ray.address or os.environ.get("RAY_ADDRESS", "")
    if "RAY_AUTH_TOKEN" not in os.environ:
        ensure_token()
    for name, value in _ALWAYS.items():
        os.environ.setdefault(name, value)
    if config.ray.template:
        deferred.install()
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": config.ray.agent_output,
        "logging_level": "warning",
        "configure_logging": True,
    }
    if address:
        _require_listener(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise NotConnected(f"no Ray cluster at {address}: {brief(error)}") from error
        return False
    try:
        _start(config, common)
    except RayletGone as error:  # seen in two of 451 starts, why is not known
        _log.warning("%s: another node is started", error)
        _start(config, common)
    return True


def _start(config: Config, common: dict[str, Any]) -> None:
    with _fast_start(config):
        ray.init(
            address="local",
            num_cpus=config.ray.num_cpus,
            object_store_memory=config.ray.object_store_mb << 20,
            include_dashboard=config.ray.dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=config.ray.temp_dir or None,
            # Not by the environment: this process has read Ray's settings from there when it imported Ray.
            _system_config=system_config(config),
            **common,
        )


def leave() -> None:
    """Leave the cluster that this process joined; one that it started ends."""
    ray.shutdown()


@contextmanager
def _fast_start(config: Config) -> Iterator[None]:
    """Start an embedded cluster's processes as fast as can be while it is entered, and say when that did not work."""
    if not config.ray.template:
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(setup.in_place(setup.install(), tuple(config.ray.preload)))
        except setup.NoTemplate as error:
            _log.warning("agents start the slow way: %s", error)
        stack.enter_context(quick())
        yield
    for why in setup.trouble():
        _log.warning("agents start the slow way: %s", why)
