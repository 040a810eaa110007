"""A router behind Ray Serve: processes of its own that answer in batches, take a new version live and are replaced.

Serve has no HTTP proxy here; its handles call replicas as Ray calls actors. A replica also opens a gRPC server of
Serve's for other deployments, on every interface: here on loopback, as nobody needs it.

Versions. Which router answers, and which one is on trial beside it, is Serve's `user_config`, so that replicas
(`flowray.runtime.replica`) that come later take the same ones. A replica loads a new version beside the old one in a
thread, lets it answer once and puts it in its place; calls under way end with the version that they began with. What it
cannot load it refuses, and says so in its status: raising would make Serve kill it. `deploy_router` looks at what all
replicas say, and takes a refused version back, because a replica that came later would find no older version to go on
with. `arrange` has them hold a version on trial, too, and whichever of the two is in force by now.

Calls are not gathered by `@serve.batch`: callers that have several tasks ask about all of them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import Any, cast

import msgspec
import ray
from ray import serve
from ray.serve import context
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

import flowray
from flowray.core.arranging import BY_HAND, Held, plan_arrangement
from flowray.core.model import RouterPlace
from flowray.errors import NotConnected, RouterRefused, WaitTimeout
from flowray.routing.config import ServingConfig
from flowray.routing.queries import RouterStatus, decode_status
from flowray.routing.versions import check
from flowray.runtime._ray_errors import brief, serve_failures, why_unserved
from flowray.runtime.scorers import Failed, Kind

_LOOK_S = 0.1  # between two looks at how a deployment gets on
_STATUS_S = 5.0  # for replicas to say how they are
_STARTS = 2  # of a replica that fails before a deployment is given up


class ServedRouter:
    """The way to a served router from one process. It asks once (`flowray.runtime.scorers.Hedged` asks better)."""

    def __init__(self, handle: Any) -> None:
        self.controller = _controller()  # of the Serve that it leads to
        self._handle = handle.options(_by_reference=True)  # by Ray's calls, not by Serve's gRPC server
        self._asked = self._handle  # by which calls are made
        self._score = self._handle.score
        self._plain = False  # calls are plain ones
        self._loop: asyncio.AbstractEventLoop | None = None  # that calls are made on, where it is but one
        self._failures = serve_failures()

    async def __call__(self, body: bytes) -> bytes | Failed:
        """The encoded Answers to encoded Queries. Cancelling it gives the call up."""
        response = None
        if not self._plain:
            self._plain = _call_plainly(self._asked)
        try:
            response = self._score.remote(body)
            answer: bytes = await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
        except self._failures as error:
            kind, detail = why_unserved(error)
            return Failed(kind=cast(Kind, kind), detail=detail)
        return answer

    def come_near(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on calls are made on this running event loop, and by nobody else.

        By itself a handle has a thread for that, so each call changes threads twice more: that is 1 ms of the median.
        Blocks: not for the thread of the loop.
        """
        near = DeploymentHandle(self._handle.deployment_name, self._handle.app_name)
        asyncio.events._set_running_loop(loop)  # of this thread: a handle works on the one that it is made under
        try:
            near._init(_run_router_in_separate_loop=False)
        finally:
            asyncio.events._set_running_loop(None)
        self._asked = near.options(_by_reference=True)
        self._score, self._plain, self._loop = self._asked.score, False, loop

    @property
    def ready(self) -> bool:
        """Is there a replica, or was there one?"""
        populated: bool = self._asked.running_replicas_populated()
        return populated

    def close(self) -> None:
        """Ask no more: lets go of what watches the replicas. Not for a thread that runs an event loop."""
        with contextlib.suppress(*self._failures):
            self._handle.shutdown()
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(self._asked._router._asyncio_router.shutdown(), self._loop).result(
                    _STATUS_S
                )

    def statuses(self, timeout_s: float = _STATUS_S) -> tuple[RouterStatus, ...]:
        """What each replica says of itself. Not for a thread that runs an event loop.

        Raises:
            WaitTimeout: some replica does not say.
        """
        try:
            said = self._handle.broadcast("status").results(timeout_s=timeout_s)
        except self._failures as error:
            raise WaitTimeout("no word from every replica", timeout_s, brief(error)) from error
        return tuple(decode_status(one) for one in said)


def deploy_router(config: ServingConfig) -> ServedRouter:
    """Serve a router on the Ray cluster that this process is connected to, or let a served one take a new version.

    Returns when every replica answers with it. Blocks: not for a thread that runs an event loop.

    Raises:
        NotConnected: this process is not connected to Ray.
        ArtifactError, SchemaError: the router or its history cannot be used; nothing was changed.
        RouterRefused: the replicas cannot take it; they go on with what they had.
        WaitTimeout: it takes longer than `ready_s`; Serve goes on trying.
    """
    _need_ray()
    version = check(config.router, config.history)
    serve.start(proxy_location="Disabled", http_options=HTTPOptions(host="127.0.0.1"))
    before = _before(config.name)
    served, trouble = _take(config, _of(RouterPlace(version, config.router, config.history)))
    if trouble and before is not None:
        _take(config, _of(RouterPlace(before.version, before.router, before.history)))
        raise RouterRefused(config.router, trouble, before.version)
    if trouble:
        undeploy(config.name)
        raise RouterRefused(config.router, trouble)
    return served


def served_router(name: str = "flowray-router") -> ServedRouter:
    """The way to what another process has deployed.

    Raises:
        NotConnected: nothing of this name is served.
    """
    _need_ray()
    try:
        return ServedRouter(serve.get_app_handle(name))
    except serve_failures() as error:
        raise NotConnected(f"no router {name!r} is served on this cluster: {brief(error)}") from error


def find_router(
    name: str, known: ServedRouter | None = None, loop: asyncio.AbstractEventLoop | None = None
) -> ServedRouter:
    """The way to it as it is now: `known` itself where that still leads there. Blocks.

    A way leads to one controller of Serve. When Serve was shut down and started again, it leads nowhere. `loop` is the
    event loop that calls are made on, where it is but one.

    Raises:
        NotConnected: nothing of this name is served now.
    """
    _need_ray()
    context._check_cached_client_alive()  # or a controller that is gone is asked for ever
    try:
        handle = serve.get_app_handle(name)
        if known is not None and known.controller == _controller():
            return known
        found = ServedRouter(handle)
        if loop is not None:
            found.come_near(loop)
    except serve_failures() as error:
        raise NotConnected(f"no router {name!r} is served on this cluster: {brief(error)}") from error
    return found


def arrange(name: str, live: RouterPlace, other: RouterPlace | None) -> str:
    """Let every replica hold the version in force and the one on trial, if any (`flowray.core.arranging`).

    Gives why the one on trial cannot be held, "" where it is; nothing is done where another version was deployed by
    hand. Blocks.

    Raises:
        NotConnected: nothing of this name is served.
        WaitTimeout: some replica does not say what it holds.
    """
    said = served_router(name).statuses()
    held = [Held(one.version, one.other, one.by_trial) for one in said]
    step = plan_arrangement(live.version, "" if other is None else other.version, held)
    if step == "yield":
        return BY_HAND
    if step == "done":
        return ""
    if not said[0].serving:
        return "it was deployed by an earlier flowray: call deploy_router again"
    config = msgspec.json.decode(said[0].serving, type=ServingConfig)
    served, trouble = _take(config, {**_of(live, other), "by_trial": "1"})
    if not trouble and other is not None:
        trouble = next((one.other_reason for one in served.statuses() if one.other != other.version), "")
    return trouble


def undeploy(name: str = "flowray-router") -> None:
    """Stop serving, if anything is; Serve itself ends too where it serves nothing else.

    Raises:
        NotConnected: this process is not connected to Ray.
    """
    _need_ray()
    with contextlib.suppress(*serve_failures()):  # nothing is served
        serve.delete(name)
        if not serve.status().applications:
            serve.shutdown()


def _of(live: RouterPlace, other: RouterPlace | None = None) -> dict[str, str]:
    """What replicas are told to hold."""
    told = {"router": live.artifact, "history": live.history, "version": live.version}
    if other is not None:
        told |= {"other_router": other.artifact, "other_history": other.history, "other_version": other.version}
    return told


def _take(config: ServingConfig, places: dict[str, str]) -> tuple[ServedRouter, str]:
    """Let every replica take a version; gives the trouble that keeps them from it, or "".

    Raises:
        WaitTimeout: it takes too long.
    """
    told, version = secrets.token_hex(4), places["version"]
    served = _run(config, {**places, "told": told, "serving": msgspec.json.encode(config).decode()})
    deadline = time.monotonic() + config.ready_s
    while time.monotonic() < deadline:
        application = serve.status().applications.get(config.name)
        if application is not None and application.status == "DEPLOY_FAILED":
            return served, "; ".join(_last_line(one.message) for one in application.deployments.values())
        with contextlib.suppress(WaitTimeout):
            said = served.statuses() if application is not None and application.status == "RUNNING" else ()
            if said and all(one.told == told for one in said):
                others = [one for one in said if one.version != version]
                return served, others[0].reason if others else ""
        time.sleep(_LOOK_S)
    raise WaitTimeout(f"version {version} is not loaded everywhere", config.ready_s, "Serve goes on trying")


def _last_line(message: str) -> str:
    """What a traceback in Serve's words comes down to."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error: " in line), lines[-1] if lines else "it does not start")


def _run(config: ServingConfig, user_config: dict[str, str]) -> ServedRouter:
    """Tell Serve what to serve; it goes about it by itself."""
    from flowray.runtime.replica import RouterReplica

    deployment = serve.deployment(RouterReplica).options(
        name="router",
        # Without a version of its own each deployment gets a random one, and Serve replaces all replicas instead of
        # calling `reconfigure`. What the constructor is given must be in it: Serve does not look.
        version=f"{flowray.__version__}/{config.precision}/{config.max_tasks}",
        _internal=True,
        user_config=user_config,
        max_ongoing_requests=config.max_ongoing,
        max_queued_requests=config.max_queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min_replicas,
            initial_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=config.target_ongoing,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
        ),
        ray_actor_options={"num_cpus": config.num_cpus},
        health_check_period_s=config.health_check_period_s,
        health_check_timeout_s=config.health_check_timeout_s,
        max_constructor_retry_count=_STARTS,
        max_surge_percent=100,  # where replicas must be replaced, the new ones are there before the old ones go
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    application = deployment.bind(config.precision, config.max_tasks)
    (handle,) = serve.run_many(
        [serve.RunTarget(application, name=config.name, route_prefix=None)], wait_for_applications_running=False
    )
    return ServedRouter(handle)


def _need_ray() -> None:
    """Serve would start a cluster of its own, without flowray's settings."""
    if not ray.is_initialized():
        raise NotConnected("this process is not connected to a Ray cluster")


def _call_plainly(handle: Any) -> bool:
    """Let each call be one plain call of a replica; False where it is too early for that.

    By itself Serve lets replicas refuse calls beyond `max_ongoing`, so each call is a stream of two answers: yes, and
    what was asked for. That takes twice the time of both processes. The handle counts its calls, too, and keeps those
    beyond the limit back; what is not kept from a replica is as many calls from each process that asks.
    """
    router = handle._router._asyncio_router
    if router._request_router is None:  # made later, it would not count calls
        return False
    router._enable_strict_max_ongoing_requests = False
    return True


def _controller() -> str:
    """Ray's id of the controller that this process has found."""
    client = context._get_global_client()
    assert client is not None, "it raises where there is none"
    found: str = client._controller._actor_id.hex()
    return found


def _before(name: str) -> RouterStatus | None:
    """What is served under this name already."""
    try:
        return next(iter(served_router(name).statuses()), None)
    except (NotConnected, WaitTimeout):
        return None
