"""Tickets: they travel in a file, and what is wrong with one is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from flowray.errors import ConfigError, NotConnected
from flowray.mesh.tickets import FILE, VERSION, Ticket, TicketUnusable, path_of, split_address
from flowray.mesh.tokens import Tokens

NOW = 1_800_000_000.0
TOKEN = "frk_" + "s3cr3t" * 7
ROOTS = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
TICKET = Ticket(
    runtime="team",
    socket="/run/flowray/team.sock",
    address="10.0.0.1:7443",
    roots_pem=ROOTS,
    server_name="coordinator",
    token=TOKEN,
    expires_at_utc=NOW + 3600,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_it_is_found_by_the_name_of_its_runtime(home):
    path = TICKET.save()
    assert path == home / ".flowray" / "team" / FILE == path_of("team")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    for where in ("team", path, str(path), "~/.flowray/team/ticket.json"):
        assert Ticket.load(where, now_utc=NOW) == TICKET


def test_it_is_replaced_and_lies_where_it_is_told(home, monkeypatch):
    monkeypatch.chdir(home)
    before = os.umask(0)
    try:
        TICKET.save(Path("mine.json"))
        assert Path("mine.json").stat().st_mode & 0o777 == 0o600
        os.umask(0o277)
        renewed = structs.replace(TICKET, expires_at_utc=NOW + 7200)
        renewed.save(Path("mine.json"))
    finally:
        os.umask(before)
    assert Ticket.load("mine.json", now_utc=NOW) == renewed
    assert [path.name for path in home.iterdir()] == ["mine.json"]
    assert Path("mine.json").stat().st_mode & 0o777 == 0o600


hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True),
)
tickets = st.builds(
    Ticket,
    runtime=st.text(min_size=1, max_size=20),
    socket=st.sampled_from(["", "/run/a.sock"]),
    address=st.builds("{}:{}".format, hosts, st.integers(1, 65_535)),
    roots_pem=st.text(max_size=20).map(lambda text: ROOTS + text),
    server_name=st.text(min_size=1, max_size=20),
    token=st.from_regex(r"frk_[A-Za-z0-9_-]{43}", fullmatch=True),
    expires_at_utc=st.floats(NOW, NOW + 86_400),
)


@settings(deadline=None)
@given(tickets)
def test_any_ticket_travels(ticket):
    assert msgspec.json.decode(ticket.encoded(), type=Ticket) == ticket
    host, port = split_address("address", ticket.address)
    assert ticket.address == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def test_it_does_not_show_its_token():
    assert TOKEN not in f"{TICKET} {TICKET!r} {[TICKET]} {TICKET.__rich_repr__()}"
    assert "10.0.0.1:7443" in repr(TICKET)
    assert TOKEN in TICKET.encoded().decode()


def problem(where: Path | str) -> str:
    with pytest.raises(TicketUnusable) as caught:
        Ticket.load(where, now_utc=NOW)
    assert isinstance(caught.value, NotConnected)
    assert TOKEN not in str(caught.value) and TOKEN not in repr(caught.value)
    return str(caught.value)


def test_none_is_said_with_the_way_out(home):
    assert problem("team") == (
        f"there is no ticket {home}/.flowray/team/ticket.json: start the runtime with `flowray up`, which leaves one "
        "there and renews it while it runs"
    )
    assert problem(home / "x.json") == (
        f"there is no ticket {home}/x.json: make one with `flowray ticket NAME -o FILE` where the runtime is"
    )


def test_an_expired_one_is_said(home):
    structs.replace(TICKET, expires_at_utc=NOW).save()
    assert "ticket.json expired at 2027-01-15 08:00:00 UTC: start the runtime" in problem("team")


def test_one_that_others_can_read_is_refused(home):
    TICKET.save().chmod(0o644)
    assert "has mode 0644: others on this machine can use it" in problem("team")


def test_one_that_cannot_be_read_is_said(home):
    path_of("team").mkdir(parents=True, mode=0o700)
    assert "ticket.json is not a plain file" in problem("team")


def test_another_version_is_said_before_anything_else(home):
    path = TICKET.save()
    path.write_text(json.dumps({"version": VERSION + 1, "token": TOKEN, "anything": "else"}))
    assert f"has version {VERSION + 1}, this flowray knows {VERSION}" in problem("team")


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": ""},
        {"server_name": ""},
        {"token": ""},
        {"socket": "", "address": ""},
        {"socket": "relative.sock"},
        {"socket": "/" + "x" * 107},
        {"address": "10.0.0.1"},
        {"address": "10.0.0.1:0"},
        {"address": "10.0.0.1:65536"},
        {"address": "10.0.0.1:²"},
        {"address": ":7443"},
        {"address": "::1:7443"},
        {"address": "[10.0.0.1]:7443"},
        {"address": "user@host:7443"},
        {"roots_pem": ""},
        {"expires_at_utc": "soon"},
        {"runtime": None},
        {"more": 1},
    ],
)
def test_a_damaged_one_names_the_field(home, change):
    data = {**msgspec.to_builtins(TICKET), **change}
    path = TICKET.save()
    path.write_text(json.dumps(data))
    text = problem("team")
    assert "is damaged" in text and next(reversed(change)) in text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", TOKEN.encode(), b'{"version": 1}'])
def test_what_is_no_ticket_is_said(home, content):
    TICKET.save().write_bytes(content)
    assert "is damaged" in problem("team")


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b"])
def test_what_is_no_name_is_said(home, name):
    with pytest.raises(ConfigError, match=r"^runtime: cannot be a runtime's name"):
        Ticket.load(name)


def test_it_is_not_saved_outside_its_place(home):
    with pytest.raises(ConfigError, match=r"^runtime: "):
        structs.replace(TICKET, runtime="../../x").save()


def test_a_ticket_by_code_is_checked_too():
    with pytest.raises(ValueError, match=r"^token: does not begin with frk_$"):
        structs.replace(TICKET, token="hunter2")


def test_the_own_ticket_renews_itself(tmp_path):
    now = [NOW]
    tokens = Tokens(tmp_path / "identity", lambda: now[0])
    first = TICKET.renewed(tokens, ROOTS, NOW)  # it had an hour left
    assert tokens.check(first.token).expires_at_utc == first.expires_at_utc == NOW + 86_400
    now[0] += 43_199
    assert first.renewed(tokens, ROOTS, now[0]) is first
    rotated = first.renewed(tokens, ROOTS * 2, now[0])
    assert rotated.roots_pem == ROOTS * 2 and rotated.token != first.token
    now[0] += 1
    second = first.renewed(tokens, ROOTS, now[0])
    assert second.token != first.token and second.address == TICKET.address
    assert tokens.check(first.token) and tokens.check(second.token)
