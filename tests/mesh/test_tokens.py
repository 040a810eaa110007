"""Tokens: what opens, what does not, and that revoking takes effect everywhere at once."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clocks import NOW, Clock
from msgspec import structs

from flowray.errors import ConfigError, MeshError
from flowray.mesh import tokens as module
from flowray.mesh.tokens import FILE, TokenRefused, Tokens

HOUR_S = 3600.0


@pytest.fixture
def tokens(tmp_path: Path, clock: Clock) -> Tokens:
    return Tokens(tmp_path / "identity", clock)


def reason(tokens: Tokens, token: str, scope: str = "client") -> str:
    with pytest.raises(TokenRefused) as caught:
        tokens.check(token, scope)
    if len(token) > 4:  # not "frk_" alone, which is part of the advice
        assert token not in str(caught.value) and token not in repr(caught.value)
    return caught.value.reason


def test_a_token_opens_and_is_not_kept(tokens, tmp_path):
    token, grant = tokens.create("client", label="laptop")
    assert re.fullmatch(r"frk_[A-Za-z0-9_-]{43}", token)
    assert tokens.check(token) == grant
    assert grant.expires_at_utc == NOW + 8 * HOUR_S
    file = tmp_path / "identity" / FILE
    text = file.read_text()
    assert token not in text and token[4:] not in text
    assert hashlib.sha256(token.encode()).hexdigest() in text
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert token not in repr(grant) and token not in repr(tokens.grants())


def test_what_does_not_open(tokens, clock):
    token, _ = tokens.create("client", hours=1)
    for wrong in ("", "frk_", token[:-1], token + "x", token.upper(), "frk_" + "x" * 43, "\udcff", "ä" * 100_000):
        assert reason(tokens, wrong) == "unknown"
    assert reason(tokens, token, "admin") == "scope"
    clock.now += HOUR_S
    assert reason(tokens, token) == "expired"


def test_all_of_the_digest_counts(tokens, tmp_path):
    token, grant = tokens.create("client")
    file = tmp_path / "identity" / FILE
    other = grant.digest[:-1] + ("0" if grant.digest[-1] != "0" else "1")
    file.write_text(file.read_text().replace(grant.digest, other) + " ")
    assert reason(tokens, token) == "unknown"


def test_an_admin_is_a_client_too(tokens):
    token, grant = tokens.create("admin")
    assert tokens.check(token, "admin") == tokens.check(token, "client") == grant


def test_a_revoked_token_is_refused_in_every_process_at_once(tokens, tmp_path, clock):
    elsewhere = Tokens(tmp_path / "identity", clock)
    token, grant = tokens.create("client")
    assert elsewhere.check(token) == grant and elsewhere.holds(grant)
    assert tokens.revoke(grant.token_id).revoked_at_utc == NOW
    assert reason(elsewhere, token) == reason(tokens, token) == "revoked"
    assert not elsewhere.holds(grant)
    clock.now += 5
    assert tokens.revoke(grant.token_id).revoked_at_utc == NOW
    made_later, _ = tokens.create("client")
    assert elsewhere.check(made_later).label == ""


def test_an_open_connection_ends_with_its_token(tokens, clock, tmp_path):
    _, grant = tokens.create("client", hours=1)
    assert tokens.holds(grant)
    clock.now += HOUR_S - 1
    assert tokens.holds(grant)
    clock.now += 1
    assert not tokens.holds(grant)
    _, grant = tokens.create("client")
    assert tokens.holds(grant) and not tokens.holds(structs.replace(grant, digest="0" * 64))
    (tmp_path / "identity" / FILE).unlink()
    assert not tokens.holds(grant)


def test_revoking_what_is_not_there_names_what_is(tokens):
    with pytest.raises(ConfigError, match=r"token_id: no token 'abc' is kept \(the latest: none\)"):
        tokens.revoke("abc")
    _, grant = tokens.create("client")
    with pytest.raises(ConfigError, match=f"the latest: {grant.token_id}"):
        tokens.revoke("abc")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"scope": "root"}, "scope"),
        ({"scope": "client", "hours": 0}, "hours"),
        ({"scope": "client", "hours": 24.5}, "hours"),
        ({"scope": "client", "hours": float("nan")}, "hours"),
        ({"scope": "client", "label": "a\nb"}, "label"),
        ({"scope": "client", "label": "x" * 101}, "label"),
    ],
)
def test_bad_fields_are_named(tokens, arguments, field):
    with pytest.raises(ConfigError) as caught:
        tokens.create(**arguments)
    assert caught.value.field == field
    assert tokens.grants() == ()


def test_the_table_is_bounded_and_forgets(tokens, clock, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 3)
    made = [tokens.create("client", hours=1)[1] for _ in range(3)]
    tokens.revoke(made[0].token_id)
    with pytest.raises(MeshError, match="3 tokens are kept, and no more than 3 may be"):
        tokens.create("client")
    clock.now += 25 * HOUR_S  # a day after their end
    _, grant = tokens.create("client")
    assert tokens.grants() == (grant,)


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from flowray.mesh.tokens import Tokens\n"
        "t = Tokens(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "for n in range(10): print(t.create('client')[0])\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "identity")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    made = [token for writer in writers for token in writer.communicate(timeout=60)[0].split()]
    tokens = Tokens(tmp_path / "identity")
    assert len(made) == 40 == len(tokens.grants()) == len({tokens.check(token).token_id for token in made})


def test_a_damaged_file_lets_nobody_in(tokens, tmp_path):
    token, _ = tokens.create("client")
    file = tmp_path / "identity" / FILE
    whole = json.loads(file.read_text())
    for content in ("", "{", "[]", json.dumps({**whole, "version": 9}), json.dumps({**whole, "x": 1})):
        part = file.with_name("part")
        part.write_text(content)
        part.chmod(0o600)
        part.replace(file)
        for _ in range(2):  # and it stays so
            with pytest.raises(MeshError, match=FILE) as caught:
                tokens.check(token)
            assert not isinstance(caught.value, TokenRefused)
    file.write_text(json.dumps(whole))
    assert tokens.check(token).scope == "client"
    file.chmod(0o644)
    with pytest.raises(MeshError, match=r"has mode 0644"):
        Tokens(tmp_path / "identity").check(token)
