"""Messages between two agents on one node: one at a time, one way as fast as it goes, and by the clock.

Every side carries 100 bytes between two processes, except `autogen`, whose agents share one. What one way means is
each side's own best: messages without answers where it has them (flowray, a bare stream, xoscar's `tell`), else calls
in flight.
"""

from __future__ import annotations

from typing import Any

from bench.measure import FLOWRAY, Found, Plan, alternate, compared
from bench.sides import Side, turns_of, versions

RATES = (100, 1_000, 10_000)  # per second, of the open loop: nearly idle, busy, what is required of flowray
_QUICK_RATES = (100, 1_000)
_TIMEOUT_S = 400.0
_TUNED = "-event_engine_client,-event_engine_listener"  # grpcio's older poller: far quicker over a Unix socket
SIDES = {
    FLOWRAY: Side("flowray_messaging"),
    "ray": Side("ray_messaging", {"task_events": True}),
    "ray_no_task_events": Side("ray_messaging", {"task_events": False}),
    "grpc_stream": Side("grpc_messaging", {"experiments": ""}),
    "grpc_stream_tuned": Side("grpc_messaging", {"experiments": _TUNED}),
    "xoscar": Side("xoscar_messaging", environment="xoscar"),
    "autogen": Side("autogen_messaging", {"grpc": False}, "autogen"),
    "autogen_grpc": Side("autogen_messaging", {"grpc": True}, "autogen"),
}


class Messaging:
    """See the module."""

    name = "messaging"
    description = "agent asks agent, 100 bytes, one node: latency, one way, by the clock; beside Ray, gRPC and others"
    peers = tuple(side for side in SIDES if side != FLOWRAY)

    def run(self, plan: Plan) -> Found:
        rates = _QUICK_RATES if plan.quick else RATES
        length: dict[str, Any] = {"bytes": 100, "in_flight": 1_000, "rates": rates}
        length |= {"asks": 300, "seconds": 0.5} if plan.quick else {"asks": 5_000, "seconds": 3}
        sides = turns_of(SIDES, plan, length, _TIMEOUT_S)
        turns = alternate(sides, plan.repeats or (1 if plan.quick else 5))
        units = {"ask_p50_ms": "ms", "ask_p99_ms": "ms", "one_way_per_s": "messages/s"}
        units |= {f"open_{rate}_p{share}_ms": "ms" for rate in rates for share in (50, 99)}
        return Found(
            measurements=compared(turns.figures, units),
            absent=turns.absent,
            settings=length,
            versions=versions(SIDES, turns.figures),
        )
