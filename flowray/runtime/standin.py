"""Who answers at the coordinator's doors while its journal cannot be used: whoever comes is told why, and comes again.

Without it clients would only find nobody there. They wait for as long as they would for a coordinator that restarts,
and then say what they were told; agents keep their results until somebody confirms them.
"""

from __future__ import annotations

from pathlib import Path

from flowray.config import Config
from flowray.errors import ConfigError, MeshError, StoreError
from flowray.mesh.authority import Authority
from flowray.mesh.endpoint import Endpoint
from flowray.mesh.frames import Hello
from flowray.mesh.identities import server_credentials
from flowray.mesh.private_files import DIRECTORY
from flowray.mesh.tickets import split_address
from flowray.runtime.places import COORDINATOR, socket_directory
from flowray.runtime.saying import say


class StandIn:
    """See the module. Made by `open`."""

    def __init__(self, runtime: str, reason: str) -> None:
        """`reason` is what everybody is told; it may change."""
        self.reason = reason
        self._endpoint = Endpoint(
            COORDINATOR, runtime=runtime, on_messages=lambda *_: None, on_event=lambda _: None, gate=self
        )

    @classmethod
    async def open(cls, config: Config, journal: Path, error: StoreError) -> StandIn:
        """Answer at the socket, and where clients from outside would come, as far as that can be."""
        standin = cls(config.name, str(error))
        try:
            await standin._endpoint.listen_unix(socket_directory(config.name, str(journal)) / "coordinator.sock")
            if config.mesh.listen:
                host, port = split_address("mesh.listen", config.mesh.listen)
                held = Authority.open(journal / DIRECTORY, runtime=config.name).issue(COORDINATOR, [host])
                await standin._endpoint.listen_tcp(host, port, server_credentials(lambda: held, require_client=False))
        except (MeshError, ConfigError, OSError) as problem:
            # What keeps the journal from being used may keep its directory from being read.
            say(f"{error}; and cannot say so: {problem}")
        return standin

    def refusal(self, hello: Hello, certified: str | None, source: str) -> str:
        """Nobody comes in. Raises MeshError: unlike a refusal by a gate this means that it may be tried again."""
        raise MeshError(self.reason)

    async def close(self) -> None:
        """Make room for the coordinator."""
        await self._endpoint.close(0.0)
