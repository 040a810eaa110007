"""`flowray token` and `flowray ticket`, on the files of a runtime that is up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from flowray.cli.app import main
from flowray.mesh.authority import Authority
from flowray.mesh.private_files import DIRECTORY
from flowray.mesh.tickets import Ticket
from flowray.mesh.tokens import TokenRefused, Tokens
from flowray.runtime.service import Process, Up

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The journal of runtime `team`, of which `up` has written down where it is, with a ticket for this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    journal = tmp_path / ".flowray" / "team" / "journal"
    journal.mkdir(parents=True, mode=0o700)
    up = Up(name="team", address="127.0.0.1:1", dashboard="", head=Process(1, 0.0), journal=str(journal))
    (journal.parent / "up.json").write_bytes(msgspec.json.encode(up))
    authority = Authority.open(journal / DIRECTORY, runtime="team")
    token, grant = Tokens(journal / DIRECTORY).create("client", label="up")
    Ticket(
        runtime="team",
        socket="/run/team.sock",
        address="127.0.0.1:7443",
        roots_pem=authority.roots_pem,
        server_name="coordinator",
        token=token,
        expires_at_utc=grant.expires_at_utc,
    ).save()
    return journal


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_a_token_is_made_listed_and_revoked_under_a_running_check(journal, call):
    running = Tokens(journal / DIRECTORY)
    running.grants()
    code, out, err = call("token", "create", "--name", "team", "--label", "laptop", "--hours", "2")
    token = out.strip()
    assert code == 0 and token not in err
    grant = running.check(token)
    assert grant.label == "laptop" and grant.expires_at_utc - grant.made_at_utc == 7200
    code, out, _ = call("token", "list", "--name", "team")
    assert code == 0 and token not in out and grant.digest not in out
    assert [line.split()[:3] for line in out.splitlines()][1] == [grant.token_id, "valid", "client"]
    code, out, _ = call("token", "revoke", grant.token_id, "--name", "team")
    assert (code, out) == (0, f"token {grant.token_id} is revoked\n")
    with pytest.raises(TokenRefused, match="is revoked"):
        running.check(token)


def test_json_is_one_document(journal, call):
    code, out, _ = call("token", "create", "--name", "team", "--scope", "admin", "--json")
    made = json.loads(out)
    assert code == 0 and Tokens(journal / DIRECTORY).check(made["token"], "admin").token_id == made["token_id"]
    code, out, _ = call("token", "list", "--name", "team", "--json")
    assert [row["label"] for row in json.loads(out)] == ["up", ""]
    assert all("digest" not in row and "token" not in row for row in json.loads(out))


def test_a_runtime_elsewhere_is_named_by_its_journal(journal, call):
    code, out, _ = call("token", "create", "--name", "other", "--journal", str(journal))
    assert code == 0 and Tokens(journal / DIRECTORY).check(out.strip())
    code, _, err = call("token", "list", "--name", "other")
    assert code == 2
    assert "no runtime 'other' was started with `flowray up` by this user (name the directory of its journal" in err


def test_a_ticket_for_another_machine(journal, call, tmp_path):
    out_file = tmp_path / "for-laptop.json"
    code, out, _ = call("ticket", "team", "-o", str(out_file), "--host", "192.0.2.7", "--hours", "1")
    assert code == 0
    ticket, own = Ticket.load(out_file), Ticket.load("team")
    assert (ticket.address, ticket.socket, ticket.server_name) == ("192.0.2.7:7443", "", "coordinator")
    assert ticket.roots_pem == own.roots_pem and ticket.token != own.token
    grant = Tokens(journal / DIRECTORY).check(ticket.token)
    assert grant.expires_at_utc == ticket.expires_at_utc <= time.time() + 3600
    assert ticket.token not in out and f"flowray token revoke {grant.token_id} --name team" in out


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_ticket_can_be_printed(journal, call, flags, tmp_path):
    code, out, err = call("ticket", "team", *flags)
    file = tmp_path / "piped.json"
    file.write_text(out)
    file.chmod(0o600)
    ticket = Ticket.load(file)
    assert code == 0 and Tokens(journal / DIRECTORY).check(ticket.token)
    assert ticket.address == "127.0.0.1:7443" and "127.0.0.1 is this machine alone" in err
    assert ticket.token not in err


def test_an_ipv6_host_gets_its_brackets(journal, call, tmp_path):
    code, _, _ = call("ticket", "team", "-o", str(tmp_path / "t.json"), "--host", "2001:db8::1")
    assert code == 0 and Ticket.load(tmp_path / "t.json").address == "[2001:db8::1]:7443"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["token", "create", "--scope", "root"], "scope: must be client or admin"),
        (["token", "create", "--hours", "48"], "hours: must be more than 0 and at most 24"),
        (["token", "revoke", "nix"], "token_id: no token 'nix' is kept"),
        (["token", "list", "--journal", "/nowhere"], "--journal: there is no directory /nowhere"),
    ],
)
def test_wrong_usage_is_named(journal, call, arguments, text):
    code, out, err = call(*arguments, "--name", "team")
    assert (code, out) == (2, "") and text in err


def test_wrong_use_of_ticket_leaves_no_token_behind(journal, call, tmp_path):
    before = Tokens(journal / DIRECTORY).grants()
    for arguments, code, text in (
        (["team", "--host", "a b"], 2, "--host: wants a host name or an IP address, got 'a b'"),
        (["team", "-o", str(tmp_path)], 2, "is a directory"),
        (["nix"], 1, "there is no ticket"),
    ):
        got, out, err = call("ticket", *arguments)
        assert (got, out) == (code, "") and text in err
    assert Tokens(journal / DIRECTORY).grants() == before
    code, _, err = call("ticket", "team", "-o", "/proc/t.json")
    assert code == 1 and "cannot be written" in err
    assert Tokens(journal / DIRECTORY).grants()[-1].revoked_at_utc is not None


def test_a_runtime_without_a_door_is_said(journal, call):
    Ticket(runtime="team", socket="/run/x", server_name="c", token="frk_x", expires_at_utc=time.time() + 60).save()
    code, _, err = call("ticket", "team")
    assert code == 1 and "listens on a Unix socket only" in err
