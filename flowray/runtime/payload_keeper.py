"""The way to the payload files from other nodes of the cluster: Ray's object store and one actor beside the files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray

from flowray.mesh.authority import Authority
from flowray.mesh.bulk import BulkService
from flowray.mesh.doors import Door
from flowray.mesh.identities import server_credentials
from flowray.mesh.private_files import DIRECTORY
from flowray.mesh.tokens import Tokens
from flowray.runtime._ray_errors import translated
from flowray.runtime.home import anywhere, pinned
from flowray.runtime.loops import LoopThread
from flowray.runtime.payloads import IN_DATABASE
from flowray.store import PayloadStore, StoreConfig
from flowray.values import Buffer

NAMESPACE = "flowray"


PAYLOADS = "payloads"  # the keeper's name, for the certificate that clients outside demand of it


class Keeper:
    """Keeps large payloads of other nodes. One for each runtime, on the node of its journal. Decodes nothing.

    Where the journal is in a database it keeps those of all nodes, on whichever it is.
    """

    def __init__(
        self, directory: str, runtime: str = "", listen_host: str = "", config: StoreConfig | None = None
    ) -> None:
        """With `listen_host` it also serves clients outside the cluster there, with TLS and a token.

        `config` names the database that has the payloads, in place of the directory.
        """
        self._store = _database(config) if config is not None else PayloadStore(Path(directory))
        self._bulk_port = 0
        if listen_host:
            identity = Path(directory).parent / DIRECTORY
            door = Door(Tokens(identity))
            credentials = server_credentials(
                Authority.open(identity, runtime=runtime).renewing(PAYLOADS), require_client=False
            )
            shown = f"[{listen_host}]" if ":" in listen_host else listen_host
            self._thread = LoopThread("flowray-bulk")

            async def serve() -> int:
                self._bulk = BulkService(self._store, door.admit)
                return await self._bulk.serve(f"{shown}:0", credentials)

            self._bulk_port = self._thread.call(serve)

    def bulk_port(self) -> int:
        """Where clients outside reach it; 0: nowhere."""
        return self._bulk_port

    def keep(self, parts: list[Any]) -> str:
        """Write these buffers, zero-copy from the object store; their reference, once they are on disk."""
        return self._store.put(*(memoryview(part) for part in parts))

    def fetch(self, ref: str) -> Any:
        """The bytes of a reference, as a buffer that travels through the object store."""
        return pickle.PickleBuffer(self._store.map(ref))


class KeeperShelf:
    """Payloads through the keeper."""

    def __init__(self, runtime: str, node_id: str, directory: str) -> None:
        self._runtime, self._node_id, self._directory = runtime, node_id, directory
        self._keeper: Any = None

    def put(self, *parts: Buffer) -> str:
        """As `PayloadStore.put`."""
        with translated("keeping a large payload"):
            return _got(self._actor().keep.remote([pickle.PickleBuffer(part) for part in parts]))

    def write(self, *parts: Buffer) -> str:
        """The same: the keeper answers once they are on disk."""
        return self.put(*parts)

    def sync(self, refs: Iterable[str]) -> None:
        """Nothing is left to be done."""

    def get(self, ref: str) -> Any:
        """The bytes, in a buffer of the object store. Raises StoreError, CoordinatorUnavailable."""
        with translated("fetching a large payload"):
            return _got(self._actor().fetch.remote(ref))

    map = get

    def _actor(self) -> Any:
        if self._keeper is None:
            if self._directory == IN_DATABASE:  # its coordinator has started it, and Ray restarts it
                self._keeper = ray.get_actor(f"{self._runtime}/payloads", namespace=NAMESPACE)
            else:
                self._keeper = keeper_of(self._runtime, self._node_id, self._directory)
        return self._keeper


def keeper_of(
    runtime: str, node_id: str, directory: str, listen_host: str = "", config: StoreConfig | None = None
) -> Any:
    """The keeper of a runtime; started if there is none. See Keeper."""
    return (
        ray.remote(Keeper)
        .options(
            name=f"{runtime}/payloads",
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=-1,  # its methods may run twice without harm
            max_concurrency=4,
            num_cpus=0,
            **(pinned(node_id) if config is None else anywhere({})),
        )
        .remote(directory, runtime, listen_host, config)
    )


def shelf_of(runtime: str, node_id: str, directory: str) -> PayloadStore | KeeperShelf:
    """The files themselves on their own node, the keeper's way on any other. Needs a process that has joined Ray."""
    is_here = directory != IN_DATABASE and ray.get_runtime_context().get_node_id() == node_id
    if is_here and _is_usable(Path(directory)):
        return PayloadStore(Path(directory))
    return KeeperShelf(runtime, node_id, directory)


def _is_usable(directory: Path) -> bool:
    """False in a container on that node which does not see the journal's directory: it is not to be made there."""
    there = directory if directory.exists() else directory.parent
    return there.is_dir() and os.access(there, os.R_OK | os.W_OK | os.X_OK)


def _database(config: StoreConfig) -> Any:
    from flowray.store.postgres_payloads import PostgresPayloads  # needs psycopg

    return PostgresPayloads(config)


def _got(ref: Any) -> Any:
    """`ray.get`, without its warning: an agent's user code runs beside the event loop, not on it."""
    return ref.future().result()
