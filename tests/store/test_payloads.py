from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from flowray.errors import StoreCorrupt, StoreError
from flowray.store import PayloadStore
from flowray.store import payloads as module

DATA = b"a large result" * 1000
DIGEST = xxhash.xxh3_128_hexdigest(DATA)
REF = f"xxh3:{DIGEST}"
OLD_REF = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


def payload_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name not in (".lock", ".identity")]


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path / "payloads")
    assert payloads.put(DATA) == REF
    assert payloads.put(memoryview(DATA)) == REF
    assert payloads.get(REF) == DATA
    assert payloads.map(REF) == DATA
    assert payloads.size(REF) == len(DATA)


def test_nothing_is_a_payload_too(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    for ref in (payloads.put(), payloads.put(b""), payloads.put(b"", b"")):
        assert payloads.get(ref) == b"" == bytes(payloads.map(ref))


def test_parts_are_one_payload(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    assert payloads.put(DATA[:5], b"", memoryview(bytearray(DATA[5:]))) == REF
    large = os.urandom(21 << 20)  # written in pieces, and the disk begins before the last one
    for put in (payloads.put, payloads.write):
        assert payloads.get(put(DATA, large, DATA)) == DATA + large + DATA


def test_files_are_private_and_one_level_down(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path / "payloads")
    path = payloads.path(payloads.put(DATA))
    assert path == tmp_path / "payloads" / DIGEST[:2] / DIGEST
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert payload_files(tmp_path) == [path]


def test_payloads_of_earlier_versions_are_read_and_kept_in_order(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    digest = OLD_REF.removeprefix("sha256:")
    path = tmp_path / digest[:2] / digest[2:4] / digest
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert payloads.get(OLD_REF) == DATA == bytes(payloads.map(OLD_REF))
    payloads.sync([OLD_REF])
    os.utime(path, (0, 0))
    assert payloads.delete_unused(lambda ref: ref == OLD_REF, older_than_s=1, now_s=10) == 0
    assert payloads.delete_unused(lambda _: False, older_than_s=1, now_s=10) == 1
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(DATA[1:])
    with pytest.raises(StoreCorrupt, match=OLD_REF):
        payloads.map(OLD_REF)


@pytest.mark.parametrize(
    "ref",
    [
        *(
            "",
            "sha256:",
            f"sha256:../../{'a' * 58}",
            "/etc/passwd",
            f"md5:{'a' * 64}",
            f"sha256:{'A' * 64}",
            f"{REF}\n",
        ),
        *("xxh3:", f"xxh3:{'a' * 31}", f"xxh3:{'a' * 64}", f"xxh3:../{'a' * 29}", f"xxh3:{'G' * 32}"),
    ],
)
def test_what_is_not_a_reference_is_refused(tmp_path: Path, ref: str) -> None:
    payloads = PayloadStore(tmp_path)
    for read in (payloads.get, payloads.map, payloads.path, payloads.size, lambda ref: payloads.sync([ref])):
        with pytest.raises(StoreError, match="not a payload reference"):
            read(ref)


def test_an_absent_payload_says_so(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    for read in (payloads.get, payloads.map, payloads.size, lambda ref: payloads.sync([ref])):
        for ref in (REF, OLD_REF):
            with pytest.raises(StoreError, match="is not in"):
                read(ref)


@pytest.mark.parametrize("damage", [DATA[:-1], b"b" + DATA[1:], b"", DATA + b"x"])
@pytest.mark.parametrize("synced", [True, False])
def test_a_damaged_payload_is_refused_and_healed_by_another_put(tmp_path: Path, damage: bytes, synced: bool) -> None:
    payloads = PayloadStore(tmp_path)
    (payloads.put if synced else payloads.write)(DATA)
    payloads.path(REF).chmod(0o600)
    payloads.path(REF).write_bytes(damage)
    if synced:
        payloads.path(REF).chmod(0o400)
    for read in (payloads.get, payloads.map):
        with pytest.raises(StoreCorrupt, match=REF):
            read(REF)
    payloads.put(DATA)
    assert payloads.get(REF) == DATA
    assert payload_files(tmp_path) == [payloads.path(REF)]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The references whose content was hashed to be read."""
    seen: list[str] = []
    really = module._digest

    def digest(ref: str, data: Any) -> str:
        seen.append(ref)
        return really(ref, data)

    monkeypatch.setattr(module, "_digest", digest)
    return seen


def test_what_was_just_written_is_not_hashed_again(tmp_path: Path, hashed: list[str]) -> None:
    payloads = PayloadStore(tmp_path)
    for write in (payloads.write, payloads.put, payloads.put, payloads.write):  # new, not yet on disk, on disk, so too
        before = time.time()
        ref = write(DATA)
        assert before - 1.01 < payloads.path(ref).stat().st_mtime < time.time()
        assert payloads.get(ref) == DATA == bytes(payloads.map(ref))
    assert hashed == []


def _written_to(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(DATA[:1])


def _aged(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 30 * 10**9))


def _from_the_future(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 10 * 10**9))


def _in_place_of_another(path: Path) -> None:
    payloads = PayloadStore(path.parent.parent)
    other = payloads.path(payloads.write(DATA + b"other"))
    times = other.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [_written_to, _aged, _from_the_future, _in_place_of_another])
@pytest.mark.parametrize("read", ["get", "map"])
def test_what_may_come_from_the_disk_or_was_touched_is_hashed(
    tmp_path: Path, hashed: list[str], change: Callable[[Path], None], read: str
) -> None:
    payloads = PayloadStore(tmp_path)
    payloads.put(DATA)
    change(payloads.path(REF))
    assert bytes(getattr(payloads, read)(REF)) == DATA
    assert hashed == [REF]


def test_after_a_restart_of_the_machine_everything_is_hashed(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = PayloadStore(tmp_path)
    payloads.put(DATA)
    monkeypatch.setattr(module, "_boot", lambda: "another")
    assert payloads.get(REF) == DATA
    assert hashed == [REF]


def test_where_a_boot_has_no_name_no_other_process_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "absent")
    assert module._boot.__wrapped__() != module._boot.__wrapped__()


def test_two_contents_under_one_digest_are_two_payloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Always:
        def update(self, _: memoryview) -> None:
            pass

        def hexdigest(self) -> str:
            return DIGEST

    monkeypatch.setattr(xxhash, "xxh3_128", Always)
    monkeypatch.setattr(xxhash, "xxh3_128_hexdigest", lambda _: DIGEST)
    payloads = PayloadStore(tmp_path)
    first, second = payloads.put(b"one"), payloads.put(b"two")
    assert (first, second) == (REF, f"sha256:{hashlib.sha256(b'two').hexdigest()}")
    assert (payloads.get(first), payloads.get(second)) == (b"one", b"two")
    assert payloads.put(b"two") == second
    assert payloads.put(b"one") == first


def test_what_is_mapped_can_be_changed_without_changing_the_payload(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    payloads.put(DATA)
    mine = payloads.map(REF)
    mine[:3] = b"xyz"
    assert bytes(mine[:5]) == b"xyzar"
    assert payloads.get(REF) == DATA
    payloads.path(REF).unlink()
    assert bytes(mine[3:]) == DATA[3:]


def test_unused_payloads_go_when_they_are_old(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    refs = [payloads.put(bytes([number])) for number in range(3)]
    for number, ref in enumerate(refs):
        os.utime(payloads.path(ref), (1000 + number, 1000 + number))
    abandoned = tmp_path / "abandoned.part"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    assert payloads.delete_unused(lambda ref: ref == refs[0], older_than_s=99, now_s=1100) == 2
    assert payloads.get(refs[0]) == b"\x00"
    assert not payloads.path(refs[1]).exists()
    assert payloads.get(refs[2]) == b"\x02"
    assert not abandoned.exists()


def test_putting_again_makes_a_payload_young(tmp_path: Path) -> None:
    """A result equal to an old, no longer used one must not be deleted before its task is recorded."""
    payloads = PayloadStore(tmp_path)
    for put in (payloads.put, payloads.write):
        put(DATA)
        os.utime(payloads.path(REF), (1000, 1000))
        put(DATA)
        assert payloads.path(REF).stat().st_mtime > 1000
    assert payloads.delete_unused(lambda _: False, older_than_s=60, now_s=payloads.path(REF).stat().st_mtime) == 0


def _put_many(directory: str, start: threading.Event, number: int) -> None:
    payloads = PayloadStore(Path(directory))
    start.wait()
    for round_number in range(20):
        assert payloads.put(DATA) == REF
        own = payloads.write(b"%d %d" % (number, round_number))
        payloads.sync([own, REF])
        assert payloads.get(REF) == DATA


def test_many_processes_and_threads_may_put_the_same_payload(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Event()
    others = [spawn.Process(target=_put_many, args=(str(tmp_path), start, number)) for number in range(2)]
    threads = [threading.Thread(target=_put_many, args=(str(tmp_path), start, 10 + number)) for number in range(4)]
    for one in (*others, *threads):
        one.start()
    start.set()
    for one in (*others, *threads):
        one.join()
    assert [one.exitcode for one in others] == [0, 0]
    payloads = PayloadStore(tmp_path)
    assert payloads.get(REF) == DATA
    assert len(payload_files(tmp_path)) == 1 + 6 * 20


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Disk:
    """Which files and directories were synced, in order; fails on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[Path] = []
        self.fails = False
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._sync)

    def _sync(self, descriptor: int) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        self.synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())


def test_a_sync_covers_the_file_and_what_leads_to_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    payloads = PayloadStore(tmp_path / "payloads")
    payloads.write(DATA)
    assert disk.synced[-1] == tmp_path / "payloads"  # all directories of the first level are on disk by then
    assert payloads.path(REF) not in disk.synced
    disk.synced.clear()
    payloads.sync([REF, REF])
    assert disk.synced == [payloads.path(REF), payloads.path(REF).parent]
    payloads.sync([REF])
    payloads.put(DATA)
    assert len(disk.synced) == 2
    digest = OLD_REF.removeprefix("sha256:")
    old = tmp_path / "payloads" / digest[:2] / digest[2:4] / digest
    old.parent.mkdir()
    old.write_bytes(DATA)
    payloads.sync([OLD_REF])
    assert disk.synced[2:] == [old, old.parent, old.parent.parent]


def test_all_files_are_synced_before_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = PayloadStore(tmp_path)
    refs = [payloads.write(bytes([number])) for number in range(5)]
    disk = Disk(monkeypatch)
    payloads.sync(refs)
    assert disk.synced[:5] == [payloads.path(ref) for ref in refs]
    assert set(disk.synced[5:]) == {payloads.path(ref).parent for ref in refs}


def test_what_could_not_be_synced_is_not_believed_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failed write-back once; the next fsync of the same pages succeeds."""
    payloads = PayloadStore(tmp_path)
    payloads.write(DATA)
    disk = Disk(monkeypatch)
    disk.fails = True
    with pytest.raises(StoreError, match=f"{REF} cannot be put on disk"):
        payloads.sync([REF])
    disk.fails = False
    with pytest.raises(StoreError, match="is not in"):
        payloads.sync([REF])
    payloads.put(DATA)
    assert payloads.get(REF) == DATA


def test_what_is_not_known_to_be_on_disk_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = PayloadStore(tmp_path)
    payloads.write(DATA)
    before = payloads.path(REF).stat()
    os.utime(payloads.path(REF), ns=(before.st_atime_ns, 0))
    payloads.write(DATA)
    after = payloads.path(REF).stat()
    assert after.st_ino == before.st_ino  # another process may be about to sync this very file
    assert after.st_mtime_ns > 0
    disk = Disk(monkeypatch)
    payloads.sync([REF])
    assert disk.synced[0] == payloads.path(REF)


@pytest.mark.parametrize("synced_meanwhile", [True, False])
def test_a_file_that_may_not_be_written_again_is_fine_if_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced_meanwhile: bool
) -> None:
    payloads = PayloadStore(tmp_path)
    payloads.write(DATA)
    os.utime(payloads.path(REF), (0, 0))
    really = Path.open

    def refused(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode != "r+b":
            return really(path, mode, *rest, **named)
        if synced_meanwhile:
            payloads.path(REF).chmod(0o400)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    if synced_meanwhile:
        assert payloads.write(DATA) == REF
        assert payloads.path(REF).stat().st_mtime > 0
    else:
        with pytest.raises(StoreError, match="Permission denied"):
            payloads.write(DATA)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "fdatasync", "posix_fallocate", "write", "link"):
        payloads = PayloadStore(tmp_path / name)
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(StoreError, match="No space left"):
                payloads.put(DATA)
        assert payload_files(tmp_path / name) == []
        assert payloads.get(payloads.put(DATA)) == DATA


# ── drafts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_draft_is_a_payload_once_it_is_adopted(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    with payloads.draft(len(DATA)) as draft:
        draft.append(DATA[:100])
        with pytest.raises(StoreError, match="14000 bytes was announced, and 100 came"):
            payloads.adopt(draft)
        draft.append(DATA[100:])
        with pytest.raises(StoreError, match="14000 bytes was announced, and more come"):
            draft.append(b"x")
        assert payloads.adopt(draft) == REF
    assert payload_files(tmp_path) == [payloads.path(REF)]
    with payloads.draft(10) as abandoned:
        abandoned.append(b"half")
    assert payload_files(tmp_path) == [payloads.path(REF)]


def test_a_directory_has_one_identity(tmp_path: Path) -> None:
    first = PayloadStore(tmp_path / "a").identity()
    assert first == PayloadStore(tmp_path / "a").identity()
    assert first != PayloadStore(tmp_path / "b").identity()
    assert len(first) == 32


def test_a_directory_is_used_only_if_it_is_the_one_that_is_meant(tmp_path: Path) -> None:
    store = PayloadStore(tmp_path / "a")
    identity = store.identity()
    ref = store.put(DATA)
    found = PayloadStore.found(tmp_path / "a", identity)
    assert found is not None
    assert found.get(ref) == DATA
    PayloadStore(tmp_path / "b").identity()
    assert PayloadStore.found(tmp_path / "b", identity) is None
    assert PayloadStore.found(tmp_path / "c", identity) is None
    assert not (tmp_path / "c").exists()
    (tmp_path / "b" / ".identity").write_bytes(b"\xff\xfe")
    assert PayloadStore.found(tmp_path / "b", identity) is None
