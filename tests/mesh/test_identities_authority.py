"""The authority: its file, its generations, and many processes at it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from flowray.errors import ConfigError, MeshError
from flowray.mesh import private_files
from flowray.mesh.authority import FILE, Authority
from flowray.mesh.private_files import PrivateFile, make_private_directory

DAY_S = 86_400.0


def roots(pem: str) -> list[str]:
    return [one.subject.rfc4514_string() for one in x509.load_pem_x509_certificates(pem.encode())]


def test_it_is_made_once_and_for_its_owner_alone(tmp_path):
    directory = tmp_path / "deep" / "identity"
    before = os.umask(0)
    try:
        first = Authority.open(directory, runtime="team")
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert not list(directory.glob("*.part"))
    assert Authority.open(directory, runtime="team").roots_pem == first.roots_pem


@pytest.mark.slow
def test_of_processes_that_race_one_makes_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from flowray.mesh.authority import Authority\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "a = Authority.open(Path(sys.argv[1]), runtime='team'); print(hash(a.roots_pem))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "identity")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(4)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    answers = set()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        answers.add(out)
    assert len(answers) == 1


def test_threads_share_one(tmp_path):
    authority = Authority.open(tmp_path / "identity", runtime="team")
    with ThreadPoolExecutor(8) as pool:
        issued = list(pool.map(authority.issue, [f"agent-{n}" for n in range(64)]))
    assert len({one.certificate_pem for one in issued}) == 64 == len({one.key_pem for one in issued})


def test_the_next_generation_is_known_before_it_signs(tmp_path, clock):
    authority = Authority.open(tmp_path / "identity", runtime="team", clock=clock)
    first, second = roots(authority.issue("a").roots_pem)
    assert authority.rotate() == 2
    after = roots(authority.issue("a").roots_pem)
    assert after[:2] == [first, second] and len(after) == 3
    clock.now += DAY_S + 601
    assert roots(authority.roots_pem) == after[1:]  # all that the first one signed has expired


def test_a_retired_generation_has_no_key_any_more(tmp_path, clock):
    authority = Authority.open(tmp_path / "identity", runtime="team", clock=clock)
    authority.rotate()
    kept = json.loads((tmp_path / "identity" / FILE).read_text())["generations"]
    assert [bool(one["key_pem"]) for one in kept] == [False, True, True]


def test_two_rotations_need_a_day_between_them(tmp_path, clock):
    authority = Authority.open(tmp_path / "identity", runtime="team", clock=clock)
    authority.rotate()
    clock.now += 3600
    with pytest.raises(MeshError, match=r"rotate again in 23\.2 hours"):
        authority.rotate()
    assert authority.generation == 2
    clock.now += DAY_S
    assert authority.rotate() == 3


def test_another_process_sees_a_rotation(tmp_path, clock):
    one = Authority.open(tmp_path / "identity", runtime="team", clock=clock)
    other = Authority.open(tmp_path / "identity", runtime="team", clock=clock)
    other.issue("a")
    one.rotate()
    issued = x509.load_pem_x509_certificate(other.issue("a").certificate_pem.encode())
    assert issued.issuer.rfc4514_string() == roots(one.roots_pem)[1]


@pytest.mark.slow
def test_it_rotates_by_itself_and_stays_small(tmp_path, clock):
    authority = Authority.open(tmp_path / "identity", runtime="team", clock=clock)
    before = authority.issue("a")
    seen = []
    for _ in range(400):
        clock.now += DAY_S / 2
        now = authority.issue("a")
        signer = x509.load_pem_x509_certificate(now.certificate_pem.encode()).issuer.rfc4514_string()
        assert signer in roots(before.roots_pem)  # whoever was issued half a day ago knows it
        known = x509.load_pem_x509_certificates(now.roots_pem.encode())
        valid = {
            one.subject.rfc4514_string() for one in known if one.not_valid_after_utc.timestamp() > clock.now + DAY_S
        }
        assert signer in valid and len(known) <= 3
        before = now
        seen.append(authority.generation)
    assert seen == sorted(seen) and seen[-1] == 1 + 200 // 30
    assert len(json.loads((tmp_path / "identity" / FILE).read_text())["generations"]) <= 4


def test_a_runtime_that_was_away_for_a_year_comes_back(tmp_path, clock):
    old = Authority.open(tmp_path / "identity", runtime="team", clock=clock).roots_pem
    clock.now += 365 * DAY_S
    authority = Authority.open(tmp_path / "identity", runtime="team", clock=clock)
    signer, following = x509.load_pem_x509_certificates(authority.roots_pem.encode())[-2:]
    assert signer.not_valid_after_utc.timestamp() > clock.now + 30 * DAY_S
    assert not set(roots(old)) & {signer.subject.rfc4514_string(), following.subject.rfc4514_string()}
    issued = x509.load_pem_x509_certificate(authority.issue("a").certificate_pem.encode())
    assert issued.issuer == signer.subject and authority.generation == 2


def test_credentials_are_renewed_at_half_their_life(tmp_path, clock):
    current = Authority.open(tmp_path / "identity", runtime="team", clock=clock).renewing("a", ["127.0.0.1"], hours=2)
    first = current()
    clock.now += 3600
    assert current() is first
    clock.now += 1
    second = current()
    assert second.expires_at_utc == clock.now + 7200 and second.key_pem != first.key_pem
    assert current() is second
    clock.now -= 86_400  # what is valid from tomorrow on would be refused
    assert current().expires_at_utc == clock.now + 7200


@pytest.mark.parametrize("hours", [0, -1, 24.01, float("nan"), float("inf")])
def test_a_life_out_of_bounds_is_named(tmp_path, hours):
    with pytest.raises(ConfigError, match="hours: must be more than 0 and at most 24"):
        Authority.open(tmp_path / "identity", runtime="team").issue("a", hours=hours)


def test_a_host_name_is_no_address(tmp_path):
    authority = Authority.open(tmp_path / "identity", runtime="team")
    with pytest.raises(ConfigError, match=r"addresses: wants IP addresses, got 'coordinator.team.flowray.internal'"):
        authority.issue("a", ["coordinator.team.flowray.internal"])


def test_a_directory_belongs_to_one_runtime(tmp_path):
    Authority.open(tmp_path / "identity", runtime="team")
    with pytest.raises(MeshError, match="is the authority of runtime 'team', not of 'other'"):
        Authority.open(tmp_path / "identity", runtime="other")


def test_what_others_can_read_is_refused(tmp_path):
    directory = tmp_path / "identity"
    Authority.open(directory, runtime="team")
    (directory / FILE).chmod(0o640)
    with pytest.raises(MeshError, match=r"has mode 0640: others on this machine can use it.*chmod 0600"):
        Authority.open(directory, runtime="team")
    (directory / FILE).chmod(0o600)
    directory.chmod(0o755)
    with pytest.raises(MeshError, match=r"has mode 0755.*chmod 0700"):
        Authority.open(directory, runtime="team")


def damaged(data: bytes) -> list[bytes]:
    state = json.loads(data)
    key = state["generations"][0]["key_pem"]
    return [
        b"",
        data[: len(data) // 2],
        json.dumps({**state, "version": 2}).encode(),
        json.dumps({**state, "generations": state["generations"][:1]}).encode(),
        json.dumps({**state, "more": 1}).encode(),
        data.replace(key.splitlines()[1].encode(), b"AAAA"),
        b"\xff" * 40,
    ]


def test_a_damaged_file_is_said_and_its_keys_are_not(tmp_path):
    directory = tmp_path / "identity"
    Authority.open(directory, runtime="team")
    file = directory / FILE
    whole = file.read_bytes()
    secrets = [line for one in json.loads(whole)["generations"] for line in one["key_pem"].splitlines()[1:-1]]
    for data in damaged(whole):
        file.write_bytes(data)
        with pytest.raises(MeshError, match=FILE) as caught:
            Authority.open(directory, runtime="team").issue("a")
        assert not any(secret in str(caught.value) for secret in secrets)
        assert caught.value.__cause__ is None


def test_a_file_in_the_way_is_said(tmp_path):
    (tmp_path / "identity").write_text("")
    with pytest.raises(MeshError, match="cannot be made"):
        Authority.open(tmp_path / "identity", runtime="team")


def test_a_private_file_notices_every_replacement(tmp_path):
    mine, theirs = PrivateFile(tmp_path / "x"), PrivateFile(tmp_path / "x")
    assert mine.read() is None and not mine.is_changed()
    for n in range(50):  # at once, of equal length: neither time nor size tells them apart
        theirs.write(b"%03d" % n)
        os.utime(theirs.path, ns=(0, 0))
        assert mine.is_changed()
        assert mine.read() == b"%03d" % n
        assert not mine.is_changed()
    mine.path.unlink()
    assert mine.is_changed() and mine.read() is None and not mine.is_changed()


def descriptors_of(path: Path) -> int:
    """How many this process has open of the file, in any version."""
    opened = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            opened += str(entry.readlink()).startswith(str(path))
    return opened


def test_a_private_file_keeps_one_descriptor(tmp_path):
    file = PrivateFile(tmp_path / "x")
    for _ in range(20):
        file.write(b"y")
        file.read()
        assert descriptors_of(tmp_path / "x") == 1
    del file
    assert descriptors_of(tmp_path / "x") == 0


def test_odd_files_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(MeshError, match="is not a plain file"):
        PrivateFile(tmp_path / "pipe").read()
    monkeypatch.setattr(private_files, "MAX_BYTES", 3)
    PrivateFile(tmp_path / "big").write(b"four")
    with pytest.raises(MeshError, match="has 4 bytes, more than the 3"):
        PrivateFile(tmp_path / "big").read()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_somebody_else_is_not_trusted(tmp_path, monkeypatch):
    make_private_directory(tmp_path / "identity")
    file = PrivateFile(tmp_path / "identity" / "x")
    file.write(b"x")
    os.chown(file.path, 12_345, 12_345)
    assert file.read() == b"x"  # root may
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(MeshError, match="belongs to another user"):
        file.read()


def test_a_writer_that_was_stopped_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(private_files, "_LOCK_S", 0.0)
    file = PrivateFile(tmp_path / "x")
    with (
        file.locked(),
        pytest.raises(MeshError, match="another process has held"),
        PrivateFile(tmp_path / "x").locked(),
    ):
        pass
    with file.locked():
        pass


def test_a_write_that_fails_leaves_what_was(tmp_path, monkeypatch):
    file = PrivateFile(tmp_path / "x")
    file.write(b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(MeshError, match="cannot be written: No space left on device"):
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and Path(tmp_path / "x").read_bytes() == b"old"
