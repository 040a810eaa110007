"""The door: who guesses has to wait, who has a token comes in until it lapses, and nobody takes a name from inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from flowray.errors import ConfigError
from flowray.mesh import doors as module
from flowray.mesh.doors import BackOff, Door, source_of
from flowray.mesh.frames import Hello
from flowray.mesh.gates import SharedSecret
from flowray.mesh.tokens import FILE, TokenRefused, Tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "identity")


def test_five_failures_a_minute_and_no_more():
    back_off = BackOff()
    for n in range(5):
        assert back_off.wait_s("a", n) == 0
        back_off.failed("a", n)
    assert back_off.wait_s("a", 5) == 55
    assert back_off.wait_s("b", 5) == 0
    assert back_off.wait_s("a", 59.5) == 0.5
    assert back_off.wait_s("a", 60) == 0
    back_off.failed("a", 60)
    assert back_off.wait_s("a", 60) == 1  # the second failure is still in the minute


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=60))
def test_no_window_has_more_failures_than_allowed(attempts):
    """Against the definition: an attempt is let through when fewer than three failed in the ten seconds before."""
    back_off, failed, now = BackOff(failures=3, within_s=10.0), {"a": [], "b": [], "c": []}, 0.0
    for source, later_s in attempts:
        now += later_s
        recent = [at for at in failed[source] if at + 10.0 > now]
        assert (back_off.wait_s(source, now) == 0) == (len(recent) < 3)
        if len(recent) < 3:
            failed[source].append(now)
            back_off.failed(source, now)


def test_the_back_off_is_bounded_and_forgets_the_quiet_first():
    back_off = BackOff(failures=1, within_s=60, max_sources=3)
    for n, source in enumerate("abca"):
        back_off.failed(source, n)
    back_off.failed("d", 4)
    assert len(back_off) == 3
    assert [back_off.wait_s(source, 4) > 0 for source in "abcd"] == [True, False, True, True]
    back_off.failed("e", 1000)
    assert len(back_off) == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"failures": 0}, "failures"), ({"within_s": 0.0}, "within_s"), ({"max_sources": 0}, "max_sources")],
)
def test_a_back_off_checks_its_bounds(arguments, field):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        BackOff(**arguments)


def hello(name: str, token: str = "") -> Hello:
    """A greeting in which only the name and the token matter."""
    others = {one.name: one.type() for one in structs.fields(Hello) if one.required}
    return Hello(**{**others, "name": name, "token": token})


def test_the_door_closes_to_who_guesses(tokens, clock):
    token, grant = tokens.create("client")
    door = Door(tokens, clock=clock)
    for n in range(5):
        clock.now = n
        with pytest.raises(TokenRefused, match="unknown token"):
            door.admit("frk_guess", f"ipv4:10.0.0.1:{5000 + n}")
    clock.now = 5
    with pytest.raises(TokenRefused, match=r"too many wrong tokens from 10\.0\.0\.1: try again in 55 s") as caught:
        door.admit(token, "ipv4:10.0.0.1:6000")
    assert caught.value.retryable and caught.value.retry_after_s == 55
    assert door.admit(token, "ipv4:10.0.0.2:6000") == grant
    clock.now = 60
    assert door.admit(token, "ipv4:10.0.0.1:6000") == grant


def test_a_forgotten_notebook_locks_nobody_out(tokens, clock):
    old, grant = tokens.create("client")
    good, _ = tokens.create("client")
    tokens.revoke(grant.token_id)
    door = Door(tokens, clock=clock)
    for _ in range(20):
        with pytest.raises(TokenRefused, match="is revoked") as caught:
            door.admit(old, "ipv4:10.0.0.1:5000")
        assert not caught.value.retryable
    assert door.admit(good, "ipv4:10.0.0.1:5001").scope == "client"


def test_a_token_gives_no_name_from_inside(tokens):
    token, _ = tokens.create("client")
    door = Door(tokens)
    assert door.refusal(hello("coordinator", token), None, "unix:") == (
        "a caller with a token is called client-..., not 'coordinator'"
    )
    assert door.refusal(hello("client-1", token), None, "unix:") == ""
    assert door.refusal(hello("agent-1"), "agent-1", "ipv4:10.0.0.1:1") == ""
    assert door.refusal(hello("coordinator", token), "agent-1", "unix:") == "its certificate says 'agent-1'"


def test_processes_of_the_runtime_pass_by_their_own_gate_on_a_unix_socket(tokens):
    token, _ = tokens.create("client")
    door = Door(tokens, inside=SharedSecret("among us"))
    assert door.refusal(hello("agent-1", "among us"), None, "unix:") == ""
    assert door.refusal(hello("agent-1", token), None, "unix:") == "a wrong token"
    assert "is called client-..." in door.refusal(hello("agent-1", "among us"), None, "ipv4:127.0.0.1:5000")
    assert "unknown token" in door.refusal(hello("client-1", "among us"), None, "unix:")


def test_a_name_belongs_to_the_token_that_took_it(tokens):
    (one, grant), (other, _) = tokens.create("client"), tokens.create("client")
    door = Door(tokens)
    assert door.refusal(hello("client-1", one), None, "unix:") == ""
    assert door.refusal(hello("client-1", one), None, "unix:") == ""
    assert "by another token" in door.refusal(hello("client-1", other), None, "unix:")
    tokens.revoke(grant.token_id)
    assert door.refusal(hello("client-1", other), None, "unix:") == ""
    assert door.lapsed() == []


def test_who_is_inside_is_named_once_its_token_lapses(tokens):
    (one, grant), (other, _) = tokens.create("client"), tokens.create("client")
    door = Door(tokens)
    for name, token in (("client-1", one), ("client-2", other), ("client-3", one)):
        assert door.refusal(hello(name, token), None, "unix:") == ""
    door.left("client-3")
    assert door.lapsed() == []
    tokens.revoke(grant.token_id)
    assert door.lapsed() == ["client-1"]
    assert door.lapsed() == []
    assert "is revoked" in door.refusal(hello("client-1", one), None, "unix:")


def test_a_door_needs_its_scope_and_its_file(tokens, tmp_path):
    token, _ = tokens.create("client")
    assert "has scope 'client', this needs 'admin'" in Door(tokens, scope="admin").refusal(
        hello("client-1", token), None, "unix:"
    )
    (tmp_path / "identity" / FILE).write_text("{")
    assert "is damaged" in Door(tokens).refusal(hello("client-1", token), None, "unix:")


def test_a_door_is_bounded(tokens, monkeypatch):
    monkeypatch.setattr(module, "MAX_CALLERS", 1)
    token, _ = tokens.create("client")
    door = Door(tokens)
    assert door.refusal(hello("client-1", token), None, "unix:") == ""
    assert door.refusal(hello("client-2", token), None, "unix:") == "1 callers are inside already"
    assert door.refusal(hello("client-1", token), None, "unix:") == ""


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("ipv4:10.1.2.3:5000", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:5000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:5000", "10.1.2.3"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
        ("unix:/tmp/x.sock", "unix"),
        ("unix:", "unix"),
        ("ipv4:nonsense", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_source_is_an_address_without_its_port(peer, source):
    assert source_of(peer) == source
