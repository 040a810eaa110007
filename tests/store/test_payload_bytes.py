from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowray.store.payload_bytes import read_bytes

SMALL, LARGE = 5000, (4 << 20) + 4321


@pytest.mark.parametrize("size", [0, 1, SMALL, LARGE])
def test_a_file_is_read_as_bytes(tmp_path: Path, size: int) -> None:
    wanted = os.urandom(size)
    (tmp_path / "file").write_bytes(wanted)
    with (tmp_path / "file").open("rb") as file:
        found = read_bytes(file.fileno(), size)
    assert type(found) is bytes
    assert found == wanted
    assert hash(found) == hash(wanted)


@pytest.mark.parametrize(("announced", "there"), [(SMALL, SMALL - 1), (LARGE, LARGE - 1), (LARGE, 0)])
def test_a_file_that_ends_early_gives_what_it_has(tmp_path: Path, announced: int, there: int) -> None:
    wanted = os.urandom(there)
    (tmp_path / "file").write_bytes(wanted)
    with (tmp_path / "file").open("rb") as file:
        assert read_bytes(file.fileno(), announced) == wanted


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_comes_in_pieces_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Linux reads 2 GiB at once at most, and less when it is interrupted."""
    wanted = os.urandom(size)
    (tmp_path / "file").write_bytes(wanted)
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, min(count, 1 + size // 3), at))
    monkeypatch.setattr(os, "preadv", lambda fd, rooms, at: preadv(fd, [rooms[0][: 1 + size // 3]], at))
    with (tmp_path / "file").open("rb") as file:
        assert read_bytes(file.fileno(), size) == wanted
