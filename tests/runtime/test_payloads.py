"""The desk and its three ways to the files: directly, through Ray and its keeper, and by streams."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowray.core.model import Payload
from flowray.errors import PayloadError, StoreCorrupt, StoreError
from flowray.runtime.payloads import NoShelf, PayloadDesk, Shelf
from flowray.store import PayloadStore

INLINE = 1000
LIMIT = 2_000_000
TEXT = "x" * 5000


def desk_over(shelf: Shelf | None, directory: Path, **settings: Any) -> PayloadDesk:
    where = {"runtime": "r", "node_id": "n", "directory": str(directory)} | settings
    return PayloadDesk(inline_bytes=INLINE, payload_bytes=LIMIT, shelf=shelf, **where)


@pytest.fixture
def store(tmp_path: Path) -> PayloadStore:
    return PayloadStore(tmp_path / "payloads")


@pytest.fixture
def desk(store: PayloadStore, tmp_path: Path) -> PayloadDesk:
    return desk_over(store, tmp_path)


def test_small_values_are_inline_and_large_ones_by_reference(desk: PayloadDesk, store: PayloadStore) -> None:
    assert desk.pack(None, "payload") is None
    assert desk.unpack(None) is None
    small = desk.pack("x" * 100, "payload")
    assert small is not None
    assert (small.ref, small.size_bytes) == (None, len(small.data or b""))
    large = desk.pack(TEXT, "payload")
    assert large is not None
    assert (large.data, large.size_bytes) == (None, store.size(large.ref or ""))
    assert (desk.unpack(small), desk.unpack(large)) == ("x" * 100, TEXT)


def test_a_value_comes_back_whatever_its_kind_and_size(desk: PayloadDesk) -> None:
    for size in (10, INLINE, 10_000, 200_000):
        for value in (b"x" * size, "x" * size, ["x" * size], ("x" * size,), {1: b"x" * size}):
            assert desk.unpack(desk.pack(value, "payload")) == value
        array = np.arange(size, dtype=np.uint8)
        again = desk.unpack(desk.pack(array, "payload"))
        again[:] += 1
        assert (again == array + 1).all()


def test_what_is_changed_in_one_process_is_not_changed_for_the_next_reader(desk: PayloadDesk) -> None:
    payload = desk.pack(np.zeros(200_000, np.uint8), "payload")
    first = desk.unpack(payload)
    first[:] = 1
    assert desk.unpack(payload).sum() == 0


def test_the_limit_is_named_and_nothing_is_written(desk: PayloadDesk, tmp_path: Path) -> None:
    desk.pack(b"x" * LIMIT, "payload")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PayloadError, match=r"result: 2000001 bytes; the limit is 2000000 \(limits.payload_bytes\)"):
        desk.pack(b"x" * (LIMIT + 1), "result")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_durable_is_on_disk_and_what_is_not_can_be_put_there(desk: PayloadDesk, store: PayloadStore) -> None:
    def is_on_disk(payload: Payload | None) -> bool:
        assert payload is not None
        return not store.path(payload.ref or "").stat().st_mode & 0o200

    assert is_on_disk(desk.pack(TEXT, "payload"))
    later = [desk.pack(TEXT + str(number), "payload", durable=False) for number in range(3)]
    assert [is_on_disk(payload) for payload in later] == [False] * 3
    assert desk.unpack(later[1]) == TEXT + "1"
    desk.sync([*later, None, desk.pack("small", "payload")])
    assert [is_on_disk(payload) for payload in later] == [True] * 3


async def test_an_event_loop_goes_on_beside_large_payloads(store: PayloadStore, tmp_path: Path) -> None:
    """The shelf waits for the loop: it would wait for ever if the loop waited for it."""
    loop_went_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Waiting(PayloadStore):
        def _wait(self) -> None:
            async def wait() -> None:
                await loop_went_on.wait()

            asyncio.run_coroutine_threadsafe(wait(), loop).result(60)

        def put(self, *parts: Any) -> str:
            self._wait()
            return super().put(*parts)

        def map(self, ref: str) -> memoryview:
            self._wait()
            return super().map(ref)

    desk = desk_over(Waiting(tmp_path / "payloads"), tmp_path)
    assert await desk.pack_beside(None, "payload") is None
    assert await desk.unpack_beside(None) is None
    small = await desk.pack_beside("small", "payload")
    assert await desk.unpack_beside(small) == "small"
    for _ in range(2):
        packing = asyncio.create_task(desk.pack_beside(TEXT, "payload"))
        await asyncio.sleep(0)
        loop_went_on.set()
        payload = await packing
        loop_went_on.clear()
        assert payload == desk_over(store, tmp_path).pack(TEXT, "payload")
        unpacking = asyncio.create_task(desk.unpack_beside(payload))
        await asyncio.sleep(0)
        loop_went_on.set()
        assert await unpacking == TEXT
        loop_went_on.clear()
    with pytest.raises(PayloadError, match="the limit is"):
        await desk.pack_beside(b"x" * (LIMIT + 1), "result")


def test_what_is_damaged_or_gone_says_so(desk: PayloadDesk, store: PayloadStore) -> None:
    for value in (TEXT, b"x" * 100_000, np.ones(100_000)):
        payload = desk.pack(value, "payload")
        assert payload is not None
        path = store.path(payload.ref or "")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
        with pytest.raises(StoreCorrupt, match="does not match its digest"):
            desk.unpack(payload)
        path.unlink()
        with pytest.raises(StoreError, match="is not in"):
            desk.unpack(payload)
    with pytest.raises(PayloadError, match="neither bytes nor a reference"):
        desk.unpack(Payload())


def test_local_classes_travel_by_value(desk: PayloadDesk) -> None:
    class Local:
        def __init__(self, array: Any) -> None:
            self.array = array

    again = desk.unpack(desk.pack(Local(np.arange(100_000)), "payload"))
    assert again.array[-1] == 99_999


@pytest.mark.slow
def test_tensors_travel_without_their_own_pickling(desk: PayloadDesk) -> None:
    torch = pytest.importorskip("torch")
    payload = desk.pack({"t": torch.arange(100_000)}, "payload")
    assert payload is not None
    assert payload.codec == "pickle-buffers"
    again = desk.unpack(payload)["t"]
    again += 1
    assert torch.equal(again, torch.arange(1, 100_001))


# ── from outside ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def streams(store: PayloadStore, tmp_path: Path) -> Iterator[Any]:
    from flowray.mesh.bulk import BulkClient, BulkService

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def served() -> BulkService:
        service = BulkService(store, lambda token, peer: None)
        await service.serve(f"unix:{tmp_path}/bulk")
        return service

    service = asyncio.run_coroutine_threadsafe(served(), loop).result()
    with BulkClient(f"unix:{tmp_path}/bulk", token="t") as client:
        yield client
    asyncio.run_coroutine_threadsafe(service.stop(0.0), loop).result()
    loop.call_soon_threadsafe(loop.stop)


def test_outside_the_cluster_payloads_travel_by_streams(desk: PayloadDesk, streams: Any, tmp_path: Path) -> None:
    outside = desk_over(streams, tmp_path, plain_only=True)
    for value in (TEXT, b"x" * 200_000, {"a": [b"y" * 200_000, 1, None]}):
        payload = outside.pack(value, "payload")
        assert payload is not None
        assert payload.ref is not None
        assert desk.unpack(payload) == value == outside.unpack(payload)
        outside.sync([payload])


def test_outside_the_cluster_nothing_is_pickled_either_way(desk: PayloadDesk, store: PayloadStore) -> None:
    outside = desk_over(store, Path("unused"), plain_only=True)
    for value in ((1, 2), np.zeros(100_000), {1: 2}):
        with pytest.raises(PayloadError, match="that is not plain data"):
            outside.pack(value, "payload")
        with pytest.raises(PayloadError, match="has codec 'pickle"):
            outside.unpack(desk.pack(value, "payload"))


def test_where_there_is_no_way_large_payloads_are_refused_and_small_ones_go(tmp_path: Path) -> None:
    """A client outside the cluster, of a runtime whose journal is in PostgreSQL."""
    desk = desk_over(NoShelf(), tmp_path, plain_only=True)
    assert desk.unpack(desk.pack("x" * 100, "payload")) == "x" * 100
    with pytest.raises(StoreError, match=r"no large payloads from outside.*limits\.inline_bytes"):
        desk.pack(TEXT, "payload")
    with pytest.raises(StoreError, match="no large results"):
        desk.unpack(Payload(codec="msgpack", ref=f"sha256:{'0' * 64}", size_bytes=5000))


def test_a_desk_outside_loads_neither_ray_nor_arrays(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from flowray.runtime.payloads import PayloadDesk
from flowray.store import PayloadStore
desk = PayloadDesk(runtime="r", node_id="", directory="", inline_bytes=10, payload_bytes=10**6, plain_only=True,
                   shelf=PayloadStore(Path({str(tmp_path)!r})))
assert desk.unpack(desk.pack(b"x" * 100_000, "payload")) == b"x" * 100_000
print([m for m in ("ray", "numpy", "torch", "pandas", "pyarrow", "grpc") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ── with Ray ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.ray
@pytest.mark.slow
def test_on_the_journals_node_the_files_are_used_and_elsewhere_the_keeper(ray_address: str, tmp_path: Path) -> None:
    import ray

    from flowray.runtime.payload_keeper import KeeperShelf, shelf_of

    here = ray.get_runtime_context().get_node_id()
    (tmp_path / "journal").mkdir()
    directory = tmp_path / "journal" / "payloads"
    direct = shelf_of("ways", here, str(directory))
    assert isinstance(direct, PayloadStore)
    assert isinstance(shelf_of("ways", "f" * 56, str(directory)), KeeperShelf)
    assert isinstance(shelf_of("ways", here, "/nowhere/journal/payloads"), KeeperShelf)

    # The keeper's way also works from its own node, where this test is.
    keeper = KeeperShelf("ways", here, str(directory))
    near = desk_over(None, directory, runtime="ways", node_id=here)
    far = desk_over(keeper, directory)
    try:
        for value in (TEXT, b"x" * 200_000, {"a": np.arange(100_000), "b": (1, 2)}):
            for maker, reader in ((near, far), (far, near), (far, far)):
                payload = maker.pack(value, "payload")
                assert payload is not None
                assert not direct.path(payload.ref or "").stat().st_mode & 0o200
                again = reader.unpack(payload)
                if isinstance(value, dict):
                    again["a"] += 1
                    assert (again["a"] == value["a"] + 1).all()
                    assert again["b"] == (1, 2)
                else:
                    assert again == value
        with pytest.raises(StoreError, match="is not in"):
            far.unpack(Payload(ref=f"xxh3:{'a' * 32}", codec="bytes"))
    finally:
        ray.kill(keeper._actor())
