from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowray.errors import StoreUnsupported
from flowray.store import SqliteStore, StoreConfig, filesystem

MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:25 / /mnt/share rw shared:1 master:2 - nfs4 server:/export rw
31 27 0:26 / /mnt/with\\040space rw - fuse.sshfs host: rw
32 27 0:27 / /dev/shm rw - tmpfs tmpfs rw
33 30 254:1 / /mnt/share/local rw - xfs /dev/vdb rw
34 27 0:28 / /over rw - ext4 /dev/vdc rw
35 27 0:29 / /over rw - overlay overlay rw
36 27 0:30 / /nine rw - 9p host rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/x", "ext4"),
        ("/mnt/share/a/b", "nfs4"),
        ("/mnt/share/local/a", "xfs"),
        ("/mnt/shared", "ext4"),
        ("/mnt/with space/a", "fuse.sshfs"),
        ("/dev/shm", "tmpfs"),
        ("/over/a", "overlay"),
    ],
)
def test_the_innermost_and_topmost_mount_holds_a_path(path: str, expected: str) -> None:
    assert filesystem.filesystem_of(Path(path), MOUNTS) == expected


def test_a_text_that_says_nothing_gives_unknown() -> None:
    assert filesystem.filesystem_of(Path("/a"), "") == "unknown"
    assert filesystem.filesystem_of(Path("/a"), "garbage\n1 2 3 - \n") == "unknown"


@pytest.mark.parametrize("path", ["/mnt/share", "/mnt/with space", "/dev/shm", "/over", "/nine"])
def test_an_unfit_file_system_is_refused_by_name_with_a_way_out(path: str) -> None:
    name = filesystem.filesystem_of(Path(path), MOUNTS)
    with pytest.raises(StoreUnsupported, match=r"store\.allow_") as caught:
        filesystem.refuse_unfit(Path(path), StoreConfig(), MOUNTS)
    assert name in str(caught.value)
    filesystem.refuse_unfit(Path(path), StoreConfig(allow_filesystems=(name,)), MOUNTS)


def test_volatile_memory_is_accepted_only_on_request() -> None:
    filesystem.refuse_unfit(Path("/dev/shm"), StoreConfig(allow_volatile=True), MOUNTS)
    with pytest.raises(StoreUnsupported, match="nfs4"):
        filesystem.refuse_unfit(Path("/mnt/share"), StoreConfig(allow_volatile=True), MOUNTS)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(StoreUnsupported, match="cannot tell"):
        filesystem.refuse_unfit(Path("/a"), StoreConfig(), "")


def test_a_directory_that_cannot_be_synced_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnsupported, match="fsync"):
        filesystem.sync_directory(tmp_path)


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnsupported, match="cannot be made"):
        SqliteStore.open(tmp_path / "file" / "store", StoreConfig(allow_filesystems=("overlay", "tmpfs")))


@pytest.mark.slow
def test_a_real_overlay_mount_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and unshare")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    program = (
        "import sys, pathlib\n"
        "from flowray.errors import StoreUnsupported\n"
        "from flowray.store import SqliteStore\n"
        "try:\n    SqliteStore.open(pathlib.Path(sys.argv[1]))\n"
        "except StoreUnsupported as error:\n    sys.stdout.write(str(error))\n"
    )
    script = (
        f'mount -t overlay overlay -o {options} {tmp_path}/merged || exit 77; exec "$0" -c "$1" {tmp_path}/merged/s'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=20,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no overlay mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "is on overlay" in done.stdout
    assert not (tmp_path / "merged" / "s" / "flowray.db").exists()
