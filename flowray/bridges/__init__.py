"""Bridges to other message systems: topics in and out of Redis (Streams, pub/sub) and RabbitMQ. Extra `bus`.

    async with open_bridge(config, topics) as bridge:
        ...
        print(bridge.figures())

At least once both ways, with dropping of repeated messages by their id; what exactly holds after which crash stands at
the head of `redis_streams`, `redis_pubsub` (which is at most once by its nature) and `rabbit`. Everything in hand is
bounded by `BridgeLimits`: a bridge stops reading while flowray does not take what it brings, and its subscribers' calls
wait while the other server does not. What cannot be passed on goes to dead letters on the other server, with a reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowray.bridges.config import BridgeConfig, BridgeLimits, InboundConfig, OutboundConfig
from flowray.bridges.figures import Figures
from flowray.bridges.topics import OnMessage, Subscription, TopicMessage, Topics
from flowray.errors import MissingExtra

if TYPE_CHECKING:
    from flowray.bridges.bridge import Bridge

__all__ = [
    "BridgeConfig",
    "BridgeLimits",
    "Figures",
    "InboundConfig",
    "OnMessage",
    "OutboundConfig",
    "Subscription",
    "TopicMessage",
    "Topics",
    "open_bridge",
]


def open_bridge(config: BridgeConfig, topics: Topics) -> Bridge:
    """The bridge of this configuration, not started yet. Raises MissingExtra without the client libraries."""
    try:
        # Only the client that is wanted is loaded.
        if config.kind == "rabbitmq":
            from flowray.bridges.rabbit import RabbitBridge

            return RabbitBridge(config, topics)
        if config.kind == "redis-streams":
            from flowray.bridges.redis_streams import RedisStreamBridge

            return RedisStreamBridge(config, topics)
        from flowray.bridges.redis_pubsub import RedisPubSubBridge

        return RedisPubSubBridge(config, topics)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"bridges need {error.name}: pip install 'flowray[bus]'") from error
