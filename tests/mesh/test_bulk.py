from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from polling import eventually

from flowray.errors import MeshError, PayloadError, StoreCorrupt, StoreError
from flowray.mesh import bulk
from flowray.mesh.authority import Authority
from flowray.mesh.bulk import BulkClient, BulkService, Limits
from flowray.mesh.grpc_tuned import grpc
from flowray.mesh.identities import outside_credentials, server_credentials, target_options
from flowray.store import PayloadStore

DATA = os.urandom(3_500_000)
TOKEN = "the right one"
pack = msgspec.msgpack.encode


def admit(token: str, peer: str) -> None:
    if token != TOKEN:
        raise MeshError(f"unknown token from {peer.partition(':')[0]}")


class Server:
    """A service on a loop in a thread of its own, as it is in a process of its own otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = PayloadStore(directory / "payloads")
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.service = self.call(self._made(Limits()))
        self.target = f"unix:{directory}/bulk"

    async def _made(self, limits: Limits) -> BulkService:
        return BulkService(self.store, admit, limits)

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def serve(self, **limits: Any) -> str:
        self.service = self.call(self._made(Limits(**limits)))
        self.call(self.service.serve(self.target))
        return self.target

    def stop(self) -> None:
        self.call(self.service.stop(0.0))

    def drafts(self) -> list[Path]:
        return list((self.directory / "payloads").glob("*.part"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path)
    yield one
    one.stop()
    one.loop.call_soon_threadsafe(one.loop.stop)


def test_a_payload_goes_there_and_back(server: Server) -> None:
    with BulkClient(server.serve(), token=TOKEN) as client:
        for parts in ((DATA,), (b"",), (), (b"x",), (DATA[:7], b"", memoryview(DATA)[7:]), (DATA[: 1 << 20],)):
            ref = client.put(*parts)
            assert ref == server.store.write(b"".join(parts))
            assert client.get(ref) == b"".join(parts)
            assert not server.store.path(ref).stat().st_mode & 0o200  # it is on disk
    assert server.drafts() == []


def test_many_threads_share_a_client(server: Server) -> None:
    results: list[bool] = []
    with BulkClient(server.serve(transfers=4), token=TOKEN) as client:

        def work(number: int) -> None:
            data = DATA + b"%d" % number
            results.append(bytes(client.get(client.put(data))) == data)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 4


def test_over_tls_the_other_side_is_proved_and_the_token_asked_for(server: Server, tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "authority", runtime="demo")
    issued = authority.issue("payloads", ["127.0.0.1"])
    port = server.call(server.service.serve("127.0.0.1:0", server_credentials(lambda: issued, require_client=False)))
    outside = outside_credentials(authority.roots_pem)
    named = target_options("demo", "payloads")
    target = f"127.0.0.1:{port}"
    with BulkClient(target, token=TOKEN, credentials=outside, server_options=named) as client:
        assert client.get(client.put(DATA)) == DATA
    with (
        BulkClient(target, token="wrong", credentials=outside, server_options=named) as client,
        pytest.raises(MeshError, match="unknown token from ipv4"),
    ):
        client.put(DATA)
    stranger = Authority.open(tmp_path / "other", runtime="demo")
    with (
        BulkClient(
            target, token=TOKEN, credentials=outside_credentials(stranger.roots_pem), server_options=named
        ) as client,
        pytest.raises(MeshError, match="cannot be reached"),
    ):
        client.put(DATA)


def test_no_tls_no_tcp(server: Server) -> None:
    with pytest.raises(MeshError, match="needs TLS credentials"):
        BulkClient("localhost:1", token=TOKEN)
    with pytest.raises(MeshError, match="needs TLS credentials"):
        server.call(server.service.serve("127.0.0.1:0"))


def test_limits_hold_on_both_sides(server: Server) -> None:
    target = server.serve(payload_bytes=1000)
    with BulkClient(target, token=TOKEN, limits=Limits(payload_bytes=999)) as client:
        with pytest.raises(PayloadError, match=r"1000 bytes; the limit is 999 \(limits.payload_bytes\)"):
            client.put(b"x" * 1000)
        with pytest.raises(PayloadError, match="1000 bytes; the limit is 999"):
            client.get(server.store.put(b"x" * 1000))
    with BulkClient(target, token=TOKEN) as client:
        client.put(b"x" * 1000)
        with pytest.raises(PayloadError, match="1001 bytes; the limit is 1000"):
            client.put(b"x" * 1001)
        with pytest.raises(PayloadError, match="1001 bytes; the limit is 1000"):
            client.get(server.store.put(b"x" * 1001))


def test_what_is_wrong_with_a_payload_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with BulkClient(server.serve(), token=TOKEN) as client:
        with pytest.raises(StoreError, match="is not in"):
            client.get(f"xxh3:{'a' * 32}")
        for bad in ("../../etc/passwd", "", "x" * 1000):
            with pytest.raises((StoreError, MeshError), match="not a payload reference"):
                client.get(bad)
        ref = client.put(DATA)
        server.store.path(ref).chmod(0o600)
        server.store.path(ref).write_bytes(DATA[1:])
        with pytest.raises(StoreCorrupt, match=ref):
            client.get(ref)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "posix_fallocate", full)
            with pytest.raises(StoreError, match="No space left"):
                client.put(DATA)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(StoreError, match="No space left"):
                client.put(DATA)
    assert server.drafts() == []


def test_too_many_transfers_are_asked_to_come_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_RETRY_S", 0.001)
    target = server.serve(transfers=0)
    with (
        BulkClient(target, token=TOKEN) as client,
        pytest.raises(MeshError, match="0 transfers are under way already"),
    ):
        client.put(DATA)


def test_a_closed_client_says_so(server: Server) -> None:
    client = BulkClient(server.serve(), token=TOKEN)
    client.close()
    with pytest.raises(MeshError, match="this client is closed"):
        client.put(DATA)


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_RETRY_S", 0.001)
    with (
        BulkClient(f"unix:{tmp_path}/nobody", token=TOKEN) as client,
        pytest.raises(MeshError, match="nobody cannot be reached"),
    ):
        client.get(f"xxh3:{'a' * 32}")


def test_a_broken_get_goes_on_where_it_was(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server breaks off after each chunk: more often than a client tries again without a byte more."""
    monkeypatch.setattr(bulk, "_RETRY_S", 0.001)
    offsets: list[int] = []
    send = BulkService._send
    decoded = bulk._decoded

    async def break_off(service: BulkService, context: Any, data: bytes) -> None:
        await send(service, context, data)
        if len(data) == 200_000:
            raise bulk._Refusal(grpc.StatusCode.UNAVAILABLE, "going down")

    def seen(data: bytes, kind: Any) -> Any:
        message = decoded(data, kind)
        if kind is bulk._Wanted:
            offsets.append(message.offset_bytes)
        return message

    monkeypatch.setattr(BulkService, "_send", break_off)
    monkeypatch.setattr(bulk, "_decoded", seen)
    ref = server.store.put(DATA)
    with BulkClient(server.serve(chunk_bytes=200_000), token=TOKEN) as client:
        assert client.get(ref) == DATA
    assert offsets == list(range(0, len(DATA), 200_000))


def test_a_put_begins_again_when_the_server_was_away(server: Server) -> None:
    client = BulkClient(server.serve(), token=TOKEN)
    client.put(b"once")
    server.stop()
    returned = threading.Timer(0.3, server.serve)
    returned.start()
    assert client.get(client.put(DATA)) == DATA
    returned.join()
    client.close()


# ── the other side does not keep to the protocol ─────────────────────────────────────────────────────────────────────


def said(target: str, messages: list[bytes]) -> tuple[Any, str]:
    with grpc.insecure_channel(target) as channel:
        call = channel.stream_unary("/flowray.Bulk/Put")
        with pytest.raises(grpc.RpcError) as raised:
            call(iter(messages), metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=30)
    error: Any = raised.value
    return error.code(), error.details()


@pytest.mark.parametrize(
    ("messages", "detail"),
    [
        ([], "the stream ended too early"),
        ([b""], "malformed"),
        ([b"\xc1"], "malformed"),
        ([pack([1, 2])], "malformed"),
        ([pack(["1"])], "malformed"),
        ([pack([2]), b"x"], "the stream ended too early"),
        ([pack([2]), b"xyz"], "3 bytes of 2 announced ones"),
        ([pack([2]), b""], "0 bytes of 2 announced ones"),
        ([pack([2]), b"xy"], "the stream ended too early"),
        ([pack([2]), b"xy", b"xy"], "malformed"),
    ],
)
def test_malformed_puts_are_refused_and_leave_nothing(server: Server, messages: list[bytes], detail: str) -> None:
    code, details = said(server.serve(), messages)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert detail in details
    assert server.drafts() == []


@pytest.mark.parametrize("size", [-1, 1 << 62])
def test_impossible_sizes_are_refused(server: Server, size: int) -> None:
    assert said(server.serve(), [pack([size])])[0] is grpc.StatusCode.OUT_OF_RANGE


def test_a_wrong_checksum_is_refused(server: Server) -> None:
    assert said(server.serve(), [pack([2]), b"xy", pack([1])])[1] == "the bytes that came have another checksum"
    assert server.drafts() == []


def test_who_says_nothing_is_let_go(server: Server) -> None:
    silence = threading.Event()

    def messages() -> Iterator[bytes]:
        yield pack([10])
        silence.wait(30)

    with grpc.insecure_channel(server.serve(idle_s=0.05)) as channel:
        call = channel.stream_unary("/flowray.Bulk/Put")
        with pytest.raises(grpc.RpcError, match=r"nothing moved within 0\.05 s"):
            call(messages(), metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=30)
        silence.set()
    eventually(lambda: server.drafts() == [])


def test_a_caller_that_dies_leaves_nothing(server: Server) -> None:
    more = threading.Event()

    def messages() -> Iterator[bytes]:
        yield pack([1 << 20])
        yield b"x" * 1000
        more.wait(30)

    channel = grpc.insecure_channel(server.serve())
    future = channel.stream_unary("/flowray.Bulk/Put").future(
        messages(), metadata=(("authorization", f"Bearer {TOKEN}"),)
    )
    eventually(server.drafts)
    channel.close()
    eventually(lambda: server.drafts() == [])
    more.set()
    assert future.cancelled() or future.exception() is not None
    with BulkClient(server.target, token=TOKEN) as client:
        assert client.get(client.put(DATA)) == DATA


def test_bytes_that_are_no_grpc_harm_nobody(server: Server) -> None:
    target = server.serve()
    for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000)):
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(target.removeprefix("unix:"))
            try:
                one.sendall(junk)
            except OSError:
                continue  # it hung up before the end
    with BulkClient(target, token=TOKEN) as client:
        assert client.get(client.put(DATA)) == DATA


def test_a_server_that_lies_is_not_believed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = server.store.put(DATA)
    target = server.serve(chunk_bytes=1 << 20)
    send = BulkService._send

    async def damaged(service: BulkService, context: Any, data: bytes) -> None:
        await send(service, context, b"x" + data[1:] if len(data) == 1 << 20 else data)

    with BulkClient(target, token=TOKEN) as client:
        with monkeypatch.context() as patched:
            patched.setattr(BulkService, "_send", damaged)
            with pytest.raises(MeshError, match="another checksum"):
                client.get(ref)

        async def twice(service: BulkService, context: Any, data: bytes) -> None:
            await send(service, context, data)
            await send(service, context, data)

        with monkeypatch.context() as patched:
            patched.setattr(BulkService, "_send", twice)
            with pytest.raises(MeshError):
                client.get(ref)

        async def nothing(service: BulkService, context: Any, data: bytes) -> None:
            pass

        with monkeypatch.context() as patched:
            patched.setattr(BulkService, "_send", nothing)
            with pytest.raises(MeshError, match="ended payload"):
                client.get(ref)
