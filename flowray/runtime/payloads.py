"""Payloads: small values inline, and where the large ones are kept.

How a value becomes bytes is `flowray.values`' business; pickles travel only between processes of one cluster, whose
members trust each other. What is larger than `limits.inline_bytes` is handed by Ray's object store to the payload
keeper, an actor on the journal's node that writes it to a content-addressed file before anyone refers to it: a
reference in the journal outlives every process.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flowray.core.model import Payload
from flowray.errors import PayloadError
from flowray.runtime._ray_errors import translated
from flowray.store import PayloadStore
from flowray.values import decode_value, encode_value

NAMESPACE = "flowray"


class Keeper:
    """Keeps large payloads in files. One for each runtime, on the node of its journal."""

    def __init__(self, directory: str) -> None:
        self._store = PayloadStore(Path(directory))

    def keep(self, data: Any) -> str:
        """Write `data` (a buffer, zero-copy from the object store); its reference, once it is on disk."""
        return self._store.put(memoryview(data))

    def fetch(self, ref: str) -> Any:
        """The bytes of a reference, as a buffer that travels through the object store."""
        return pickle.PickleBuffer(self._store.get(ref))


class PayloadDesk:
    """Makes payloads in a driver or an agent, and reads them."""

    def __init__(self, *, runtime: str, node_id: str, directory: str, inline_bytes: int, payload_bytes: int) -> None:
        self._runtime, self._node_id, self._directory = runtime, node_id, directory
        self._inline_bytes, self._payload_bytes = inline_bytes, payload_bytes
        self._keeper: Any = None

    def pack(self, value: Any, field: str) -> Payload | None:
        """Encode a value. None stays None.

        Raises:
            PayloadError: it cannot be pickled, or is larger than `limits.payload_bytes`.
        """
        if value is None:
            return None
        codec, data = encode_value(value, field, _pickled)
        if len(data) > self._payload_bytes:
            raise PayloadError(field, f"{len(data)} bytes; the limit is {self._payload_bytes} (limits.payload_bytes)")
        if len(data) <= self._inline_bytes:
            return Payload(codec=codec, data=data, size_bytes=len(data))
        with translated("keeping a large payload"):
            ref = _got(self._kept_by().keep.remote(pickle.PickleBuffer(data)))
        return Payload(codec=codec, ref=ref, size_bytes=len(data))

    def unpack(self, payload: Payload | None) -> Any:
        """The value back. Raises StoreError if a referenced payload is gone or damaged."""
        if payload is None:
            return None
        data: Any = payload.data
        if data is None:
            with translated("fetching a large payload"):
                data = _got(self._kept_by().fetch.remote(payload.ref))
        return decode_value(payload.codec, data)

    def _kept_by(self) -> Any:
        if self._keeper is None:
            self._keeper = (
                ray.remote(Keeper)
                .options(
                    name=f"{self._runtime}/payloads",
                    namespace=NAMESPACE,
                    get_if_exists=True,
                    lifetime="detached",
                    max_restarts=-1,
                    max_task_retries=-1,  # both methods may run twice without harm
                    max_concurrency=4,
                    num_cpus=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(self._node_id, soft=False),
                )
                .remote(self._directory)
            )
        return self._keeper


def _got(ref: Any) -> Any:
    """`ray.get`, without its warning: an agent's user code runs beside the event loop, not on it."""
    return ref.future().result()


def _pickled(value: Any) -> bytes:
    """By value for what cannot be imported elsewhere: classes and functions of notebooks and scripts."""
    data: bytes = cloudpickle.dumps(value, protocol=5)
    return data
