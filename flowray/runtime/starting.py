"""Starting a runtime on Ray, or finding one through Ray. What only connects by a ticket never comes here."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import ray
from msgspec import structs

from flowray import errors
from flowray.config import Config, beside_results, load
from flowray.errors import FlowrayError, NotConnected, StoreError
from flowray.runtime import messages
from flowray.runtime._ray_errors import ABSENT, LOST, NOT_CREATED, brief
from flowray.runtime.cluster import NAMESPACE, join_or_start
from flowray.runtime.coordinator import CoordinatorActor
from flowray.runtime.home import anywhere, pinned
from flowray.runtime.link import Way, new_name
from flowray.runtime.messages import Admission, Door, Reply

_READY_S = 60.0  # for the coordinator's process to start
_NOT_NOW: tuple[type[BaseException], ...] = (FlowrayError, *NOT_CREATED)
_AGAIN_S = 10.0  # for one that is looked for again
_END_S = 10.0  # for it to end
_LOOK_S = 0.1  # between two looks for a coordinator that Ray is starting again
_STALE_S = 7 * 86_400.0  # age of a scratch journal that nobody can be using any more


class Started:
    """What this process started, or joined as a process of the cluster."""

    def __init__(self, way: Way, actor: Any, *, owns: bool, embedded: bool, scratch: Path | None) -> None:
        self.way = way
        self.owns = owns  # this process started the coordinator, so leaving the `with` block stops it
        self._actor = actor
        self._embedded = embedded  # and the Ray cluster too
        self._scratch = scratch  # a journal that goes with the run

    def end(self) -> None:
        """End what is left of it."""
        with contextlib.suppress(*LOST):
            ray.get(self._actor.shut_down.remote(), timeout=_END_S)
        with contextlib.suppress(*LOST):
            ray.kill(self._actor, no_restart=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        if self._embedded:
            ray.shutdown()


def start(config: Config, *, keep: bool) -> Started:
    """See Runtime.start. Raises NotConnected and StoreError."""
    embedded = join_or_start(config)
    try:
        try:
            way, actor = _found(config.name)
        except NotConnected:
            return _create(config, embedded=embedded, keep=keep)
        return Started(way, actor, owns=False, embedded=False, scratch=None)
    except BaseException:
        if embedded:
            ray.shutdown()
        raise


def join(name: str, address: str) -> Way:
    """The way to a runtime on a Ray cluster. Raises NotConnected."""
    join_or_start(load(None, {}, {"name": name, "ray.address": address}))
    return _found(name)[0]


def _found(name: str) -> tuple[Way, Any]:
    try:
        actor = ray.get_actor(f"{name}/coordinator", namespace=NAMESPACE)
    except ValueError as error:
        raise NotConnected(f"no runtime {name!r} runs on this cluster; start one with `flowray up`") from error
    return _ready(name, actor), actor


def _create(config: Config, *, embedded: bool, keep: bool) -> Started:
    if config.store.url and not config.journal:
        config = structs.replace(config, journal=str(Path.home() / ".flowray" / config.name / "journal"))
    scratch = None if config.journal else _scratch_directory(config.name)
    if scratch is not None:
        config = beside_results(config, volatile=True)
    journal = scratch if scratch is not None else Path(config.journal).expanduser().absolute()
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    owner_job = "" if keep else context.get_job_id()
    actor = (
        ray.remote(CoordinatorActor)
        .options(
            name=f"{config.name}/coordinator",
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=10_000,
            num_cpus=0,
            enable_task_events=False,
            **(anywhere(config.ray.coordinator_labels) if config.store.url else pinned(node_id)),
        )
        .remote(msgspec.msgpack.encode(config), str(journal), secrets.token_hex(8), owner_job)
    )
    try:
        way = _ready(config.name, actor)
    except BaseException:
        ray.kill(actor, no_restart=True)
        raise
    return Started(way, actor, owns=not keep, embedded=embedded, scratch=scratch)


def again(name: str, client: str) -> Way | None:
    """The way to where the coordinator is now, for a client that is called this; None while that is not known."""
    try:
        actor = ray.get_actor(f"{name}/coordinator", namespace=NAMESPACE)
        return _way(name, actor, client, _at_once)
    except _NOT_NOW:
        return None  # it is being started, or nobody can say: the client asks again


def _ready(name: str, actor: Any) -> Way:
    """Wait for a coordinator's process; the way to it."""
    return _way(name, actor, new_name(), _until_there)


def _way(name: str, actor: Any, client: str, got: Callable[[Callable[[], Any]], Any]) -> Way:
    try:
        reply = messages.decode(got(actor.ready.remote), Reply)
    except LOST as error:
        raise NotConnected(f"the coordinator does not start: {brief(error)}") from error
    if reply.error:
        kind = getattr(errors, reply.error, FlowrayError)
        if isinstance(kind, type) and issubclass(kind, StoreError):
            raise kind(reply.detail)
        raise FlowrayError(f"{reply.error}: {reply.detail}")
    door = messages.decode(reply.body, Door)
    node_id = ray.get_runtime_context().get_node_id()
    if door.node_id == node_id:
        return Way(runtime=name, token=door.token, path=door.path, through_ray=True)
    try:
        admission = messages.decode(got(lambda: actor.admit.remote(client)), Admission)
    except LOST as error:
        raise NotConnected(f"the coordinator lets nobody in from another node: {brief(error)}") from error
    return Way(
        runtime=name,
        token=door.token,
        address=admission.address,
        credentials=admission.credentials,
        node_id=node_id,
        host=ray.util.get_node_ip_address(),
        through_ray=True,
    )


def _until_there(call: Callable[[], Any]) -> Any:
    """What an actor returns, once it is there: Ray may be starting it again. Raises one of Ray's errors."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            return ray.get(call(), timeout=max(0.1, deadline - time.monotonic()))
        except ABSENT:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S)


def _at_once(call: Callable[[], Any]) -> Any:
    """What an actor returns, if it is there: whoever asks will ask again. Raises one of Ray's errors."""
    return ray.get(call(), timeout=_AGAIN_S)


def _scratch_directory(name: str) -> Path:
    """A journal for one run: gone when the run ends, for it has nothing that a later run could need.

    A driver that is killed leaves its own behind; what is a week old is swept by the next one.
    """
    runs = Path.home() / ".flowray" / "runs"
    path = runs / f"{name}-{os.getpid()}-{secrets.token_hex(4)}"
    path.mkdir(mode=0o700, parents=True)
    for old in runs.iterdir():
        if time.time() - old.stat().st_mtime > _STALE_S:
            shutil.rmtree(old, ignore_errors=True)
    return path
