"""`flowray up` on real Ray, while the control store, the raylet and the supervisor itself are killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from bridges.servers import RedisServer, missing, started
from polling import eventually
from test_cli_ray import Place

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

HERE = ("--name", "cli")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A team whose runtime, if it has one, is gone afterwards."""
    (tmp_path / "home").mkdir()
    made = Place(tmp_path)
    made.team()
    yield made
    if (tmp_path / "home" / ".flowray" / "cli" / "up.json").exists():
        made.call("down", *HERE)


class Head:
    """What `flowray up` started, looked at from outside."""

    def __init__(self, place: Place, up: dict[str, Any]) -> None:
        self.place = place
        self.supervisor = psutil.Process(up["pid"])
        self.log = Path(up["log"])

    def process(self, name: str) -> psutil.Process | None:
        """A process of Ray's, the supervisor's child."""
        for child in self.supervisor.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended between the two questions
                if child.name() == name:
                    return child
        return None

    def kill(self, name: str) -> None:
        """And wait until another one is there."""
        killed = self.process(name)
        assert killed is not None
        killed.kill()
        eventually(lambda: self.process(name) not in (None, killed), f"another {name}")

    def answers(self, text: str, key: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.place.ask("submit", text, "--needs", "count", "--key", key, *HERE)
        return answer

    def epoch(self) -> int:
        return int(self.place.ask("status", *HERE)["epoch"])


def survives(place: Place, *settings: str) -> None:
    """Everything that can be killed is killed once, and what was accepted before is still known."""
    up = place.ask("up", "team.yaml", "--no-dashboard", *settings)
    head = Head(place, up)
    first = head.answers("one two three", "a")
    assert (first["state"], first["value"]) == ("succeeded", 3)

    before = head.epoch()
    head.kill("gcs_server")
    assert head.answers("one two", "b")["value"] == 2
    assert head.epoch() == before, "nobody but the control store was started again"

    head.kill("raylet")  # and with it goes the node: coordinator and agents
    eventually(lambda: "raylet was started again" in head.log.read_text(), "the node is there again")
    assert head.answers("one two three four", "c")["value"] == 4
    assert head.epoch() > before

    head.supervisor.kill()  # and all of Ray here with it
    again = place.ask("up", "team.yaml", "--no-dashboard", *settings)
    assert again["started"] is True
    assert again["address"] == up["address"], "other nodes wait for it there"
    head = Head(place, again)
    assert head.answers("one", "d")["value"] == 1
    assert head.answers("one two three", "a")["task_id"] == first["task_id"]

    place.ask("down", *HERE)
    assert place.left() == []
    assert not (place.directory / "home" / ".flowray" / "cli" / "head.json").exists()


def test_a_head_on_the_embedded_store_survives(place: Place) -> None:
    survives(place)
    assert not list((place.directory / "home" / ".flowray" / "cli").glob("gcs*"))


@pytest.mark.chaos  # the same as on the embedded store
def test_a_head_on_a_redis_survives(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing("redis"):
        pytest.skip(reason)
    (tmp_path / "redis").mkdir()
    with started(RedisServer(tmp_path / "redis")) as server:
        monkeypatch.setenv("TABLES", server.url)
        survives(place, "--set", "ray.store=env:TABLES")


def test_in_the_foreground_it_ends_with_its_head_and_takes_it_down_when_it_is_told_to(place: Place) -> None:
    command = ("up", "team.yaml", "--no-dashboard", "--foreground", "--json")
    kept = place.begin(*command)
    record = place.directory / "home" / ".flowray" / "cli" / "up.json"
    eventually(lambda: record.exists() and '"journal": ""' not in record.read_text(), "it is up")
    eventually(lambda: place.call("status", *HERE)[0] == 0, "it answers")
    kept.send_signal(signal.SIGTERM)
    out, err = kept.communicate(timeout=60)
    assert kept.returncode == 0, err
    assert '"started": true' in out
    assert place.left() == []
    assert os.path.lexists(record) is False
