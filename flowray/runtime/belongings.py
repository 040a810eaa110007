"""The few files beside a journal, for a coordinator that may begin on another node: kept in the store's database too.

The authority, the tokens, the secret that the processes share, and who has subscribed: each lies as a file on the
coordinator's node, where everything finds it as usual. A coordinator fetches them before it opens its doors, and what
changes meanwhile (a token is made or revoked) is in the database within about a second. What was changed on this node
while no coordinator ran, and nowhere else, stands.

Whoever can read the schema can read these: it is the runtime's root of trust, as the directory is elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from flowray.errors import StoreError
from flowray.mesh import authority, tokens
from flowray.mesh.private_files import DIRECTORY, PrivateFile, make_private_directory
from flowray.store import Store

if TYPE_CHECKING:
    from flowray.store.postgres import PostgresStore  # needs psycopg

NAMES = ("mesh_token", "subscribers", f"{DIRECTORY}/{authority.FILE}", f"{DIRECTORY}/{tokens.FILE}")
COPIES = "belongings.json"  # digests of what was in the database when this node last looked
_LOOK_S = 1.0


def fetched(store: Store, directory: Path) -> Belongings:
    """Those of a runtime whose journal is in PostgreSQL, fetched. Raises StoreError, MeshError."""
    from flowray.store.postgres import PostgresStore

    assert isinstance(store, PostgresStore)
    belongings = Belongings(store, directory)
    belongings.fetch()
    return belongings


class Belongings:
    """Use only from the coordinator's event loop, once its epoch has begun."""

    def __init__(self, store: PostgresStore, directory: Path) -> None:
        self._store, self._directory = store, directory
        self._kept: dict[str, bytes] = {}  # in the database, as far as this coordinator knows

    def fetch(self) -> None:
        """Put what the database has into the directory. Raises StoreError, MeshError."""
        known = self._known()
        self._kept = self._store.files()
        make_private_directory(self._directory / DIRECTORY)
        for name, body in self._kept.items():
            here = self._read(name)
            # Changed here alone, since this node last was where the coordinator is: that is newer.
            is_newer_here = here is not None and here != body and known.get(name) == _digest(body)
            if name in NAMES and here != body and not is_newer_here:
                PrivateFile(self._directory / name).write(body)

    async def keep(self) -> None:
        """Return once what the directory has is in the database. Raises StoreError."""
        changed = {name: body for name in NAMES if (body := self._read(name)) is not None}
        changed = {name: body for name, body in changed.items() if self._kept.get(name) != body}
        if changed:
            done: Future[StoreError | None] = Future()
            self._store.keep_files(changed, done.set_result)
            if (error := await asyncio.wrap_future(done)) is not None:
                raise error
            self._kept |= changed
        digests = {name: _digest(body) for name, body in self._kept.items()}
        if changed or digests != self._known():
            PrivateFile(self._directory / COPIES).write(json.dumps(digests).encode())

    async def keep_for_ever(self, on_store_failure: Callable[[StoreError], None]) -> None:
        """Look for changes every second."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.keep()
            except StoreError as error:
                on_store_failure(error)
                return

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def _known(self) -> dict[str, str]:
        try:
            return {str(name): str(digest) for name, digest in json.loads(self._read(COPIES) or b"{}").items()}
        except (ValueError, AttributeError):
            return {}  # then the database is right


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
