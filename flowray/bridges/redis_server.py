"""What both Redis bridges share: connections, which errors pass, and the dead-letter stream."""

from __future__ import annotations

from abc import ABC
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from flowray.bridges import trail
from flowray.bridges.bridge import Bridge, Lane
from flowray.bridges.outbox import Outbox, Sending
from flowray.errors import ConfigError

# A word of what a server says when it cannot do something now.
_PASSING = {
    *("LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "NOREPLICAS", "TRYAGAIN"),
    *("NOGROUP", "UNBLOCKED", "NOSCRIPT"),  # cured by the beginning of the next session
}
_KINDS = (
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
    exceptions.NoScriptError,
)  # of those errors redis-py takes the first word away


class RedisBridge(Bridge, ABC):
    """A bridge whose server is a Redis (6.2 or later; not a Redis Cluster)."""

    def _client(self, block_s: float = 0.0) -> Redis:
        """A client for one session. It does not try again by itself: what was read and lost must be asked for anew."""
        try:
            return Redis.from_url(
                self._address.read(),
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=self.limits.answer_within_s + block_s,
                socket_connect_timeout=self.limits.answer_within_s,
                health_check_interval=self.limits.answer_within_s,
                client_name=f"flowray-{self.config.name}",
            )
        except (ValueError, TypeError):
            raise ConfigError("url", "has an option that redis-py does not know") from None

    def _judge(self, error: Exception, lane: Lane) -> Exception | None:
        if isinstance(error, (exceptions.AuthenticationError, exceptions.AuthorizationError)):
            if lane.was_connected:
                return None  # the password is being changed, or the server came up without its users
            return ConfigError("url", f"Redis refuses it: {self._address.hide(str(error))}")
        if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError, *_KINDS)):
            return None
        if isinstance(error, exceptions.NoPermissionError):
            return ConfigError("url", f"this user of Redis may not do what a bridge does: {error}")
        if isinstance(error, exceptions.ResponseError):
            words = set(str(error).split())  # of a script's error the first word may be another
            if words & _PASSING:
                return None
            if "WRONGTYPE" in words:
                return ConfigError("source or target", f"{lane.name}: this key of Redis is no stream")
        return error

    async def _sendable(self, client: Redis, outbox: Outbox) -> list[Sending]:
        """The next batch, without what cannot be passed on: that goes to the dead letters."""
        batch = await outbox.take(self.limits.batch, self.limits.batch_bytes)
        for sending in (sending for sending in batch if sending.reason):
            message = sending.message
            fields = {"message_id": message.message_id.encode(), "body": message.body}
            await self._bury(client, f"topic {message.topic}", sending.reason, fields)
            outbox.confirm([sending])
        return [sending for sending in batch if not sending.reason]

    async def _bury(self, client: Redis, source: str, reason: str, fields: dict[str, bytes]) -> None:
        """Add an entry to the dead-letter stream."""
        entry: list[Any] = ["reason", reason[:1000], "source", source, trail.ORIGIN, self.config.name]
        for name, value in fields.items():
            entry += [name, value]
        keep = ("MAXLEN", "~", self.limits.dead_letters)
        await client.execute_command("XADD", self.config.dead_name, *keep, "*", *entry)
        self._figures.dead += 1
