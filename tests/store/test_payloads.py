from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from flowray.errors import StoreCorrupt, StoreError
from flowray.store import PayloadStore

DATA = b"a large result" * 1000
REF = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path / "payloads")
    assert payloads.put(DATA) == REF
    assert payloads.put(memoryview(DATA)) == REF
    assert payloads.get(REF) == DATA
    assert payloads.size(REF) == len(DATA)
    assert payloads.get(payloads.put(b"")) == b""


def test_files_are_private_and_lie_two_levels_down(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path / "payloads")
    path = payloads.path(payloads.put(DATA))
    digest = REF.removeprefix("sha256:")
    assert path == tmp_path / "payloads" / digest[:2] / digest[2:4] / digest
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in path.parent.iterdir()] == [digest]


@pytest.mark.parametrize(
    "ref",
    ["", "sha256:", f"sha256:../../{'a' * 58}", "/etc/passwd", f"md5:{'a' * 64}", f"sha256:{'A' * 64}", f"{REF}\n"],
)
def test_what_is_not_a_reference_is_refused(tmp_path: Path, ref: str) -> None:
    payloads = PayloadStore(tmp_path)
    for read in (payloads.get, payloads.path, payloads.size):
        with pytest.raises(StoreError, match="not a payload reference"):
            read(ref)


def test_an_absent_payload_says_so(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    for read in (payloads.get, payloads.size):
        with pytest.raises(StoreError, match="is not in"):
            read(REF)


@pytest.mark.parametrize("damage", [DATA[:-1], b"b" + DATA[1:]])
def test_a_damaged_payload_is_refused_and_healed_by_another_put(tmp_path: Path, damage: bytes) -> None:
    payloads = PayloadStore(tmp_path)
    payloads.put(DATA)
    payloads.path(REF).write_bytes(damage)
    with pytest.raises(StoreCorrupt, match=REF):
        payloads.get(REF)
    payloads.put(DATA)
    assert payloads.get(REF) == DATA


def test_unused_payloads_go_when_they_are_old(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    refs = [payloads.put(bytes([number])) for number in range(3)]
    for number, ref in enumerate(refs):
        os.utime(payloads.path(ref), (1000 + number, 1000 + number))
    abandoned = payloads.path(refs[0]).with_suffix(".part")
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
    payloads.put(DATA)
    os.utime(payloads.path(REF), (1000, 1000))
    payloads.put(DATA)
    assert payloads.delete_unused(lambda _: False, older_than_s=60, now_s=payloads.path(REF).stat().st_mtime) == 0


def test_many_threads_may_put_the_same_payload(tmp_path: Path) -> None:
    payloads = PayloadStore(tmp_path)
    threads = [threading.Thread(target=payloads.put, args=(DATA,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert payloads.get(REF) == DATA


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = PayloadStore(tmp_path)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError):
        payloads.put(DATA)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
