"""A payload from one process to another, by flowray's payload files and by Ray's object store, taking turns.

Both sides use the same two processes and the same bytes, new ones each time (flowray keeps equal bytes once). Timed are
putting in the first and getting in the second process, not the message between them, which carries the reference.
`read` adds one pass over the bytes in the second process: a mapped page costs its fault only then. What flowray's
coordinator waits for before it records a reference, the sync, is timed on its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray

from bench.workers.common import main
from bench.workers.plain_ray import start_ray
from flowray.core.model import Payload
from flowray.runtime.payload_keeper import shelf_of
from flowray.runtime.payloads import PayloadDesk
from flowray.store import PayloadStore

_INLINE_BYTES = 64 * 1024
_WARM = 0.2  # this share of the rounds comes first and is not counted


class Reader:
    """The second process."""

    def __init__(self, settings: dict[str, Any], place: dict[str, str]) -> None:
        self._desk, _ = made_desk(place)
        self._read = settings["read"]

    def from_ray(self, refs: list[Any]) -> float:
        began_at = time.perf_counter()
        return self._took_s(ray.get(refs[0]), began_at)

    def from_flowray(self, payload: Payload) -> float:
        began_at = time.perf_counter()
        return self._took_s(self._desk.unpack(payload), began_at)

    def _took_s(self, value: Any, began_at: float) -> float:
        if self._read:
            np.frombuffer(value, np.uint64).sum()
        return time.perf_counter() - began_at


def made_desk(place: dict[str, str]) -> tuple[PayloadDesk, PayloadStore]:
    shelf = shelf_of("bench", place["node_id"], place["directory"])
    if not isinstance(shelf, PayloadStore):
        raise RuntimeError(f"{place['directory']} cannot be used directly")
    desk = PayloadDesk(
        runtime="bench", inline_bytes=_INLINE_BYTES, payload_bytes=1 << 30, shelf=shelf, node_id="", directory=""
    )
    return desk, shelf


def work(settings: dict[str, Any]) -> dict[str, float]:
    start_ray()
    with tempfile.TemporaryDirectory(dir=settings["directory"] or None) as directory:
        place = {"node_id": ray.get_runtime_context().get_node_id(), "directory": str(Path(directory) / "payloads")}
        reader: Any = ray.remote(Reader).options(num_cpus=0).remote(settings, place)
        desk, store = made_desk(place)
        base = np.random.default_rng(1).integers(0, 256, settings["bytes"], dtype=np.uint8)
        times: dict[str, list[float]] = {}

        def note(**seconds: float) -> None:
            for name, value in seconds.items():
                times.setdefault(name, []).append(value)

        def fresh() -> Any:
            value = base.copy()
            value[:16] = np.frombuffer(os.urandom(16), np.uint8)
            return value if settings["kind"] == "numpy" else value.tobytes()

        def by_ray() -> None:
            value, began_at = fresh(), time.perf_counter()
            ref = ray.put(value)
            put_s = time.perf_counter() - began_at
            note(ray_put=put_s, ray=put_s + ray.get(reader.from_ray.remote([ref]), timeout=60))

        def by_flowray() -> None:
            value, began_at = fresh(), time.perf_counter()
            payload = desk.pack(value, "payload", durable=False)
            put_s = time.perf_counter() - began_at
            both_s = put_s + ray.get(reader.from_flowray.remote(payload), timeout=60)
            note(flowray_put=put_s, flowray=both_s)
            assert payload is not None
            assert payload.ref is not None
            store.path(payload.ref).unlink()

        def by_flowray_durably() -> None:
            value, began_at = fresh(), time.perf_counter()
            payload = desk.pack(value, "payload")
            put_s = time.perf_counter() - began_at
            both_s = put_s + ray.get(reader.from_flowray.remote(payload), timeout=60)
            note(flowray_durable_put=put_s, flowray_durable=both_s)
            assert payload is not None
            assert payload.ref is not None
            store.path(payload.ref).unlink()

        ways = (by_ray, by_flowray, by_flowray_durably)
        for number in range(settings["rounds"]):
            for way in ways if number % 2 else reversed(ways):
                way()
        warm = int(_WARM * settings["rounds"])
        counted = {name: median(values[warm:]) for name, values in times.items()}
    ray.shutdown()
    return {f"{name}_ms": seconds * 1e3 for name, seconds in counted.items()} | {
        f"{name}_mb_per_s": settings["bytes"] / 1e6 / counted[name] for name in ("ray", "flowray", "flowray_durable")
    }


if __name__ == "__main__":
    main(work)
