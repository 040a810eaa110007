"""Where what belongs to a journal is placed, and how long whoever looks for it waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import exceptions as rex

from flowray.runtime import starting
from flowray.runtime.home import HOME, anywhere, pinned

OTHER = "a" * 56  # as Ray's ids are


@pytest.fixture(autouse=True)
def _nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeID": "old", "Alive": False, "Labels": {HOME: "here"}},
        {"NodeID": "new", "Alive": True, "Labels": {HOME: "here", "zone": "far"}},
        {"NodeID": OTHER, "Alive": True, "Labels": {}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


@pytest.mark.parametrize("node_id", ["old", "new"])
def test_a_head_that_came_back_is_found_by_its_label_whichever_id_it_had(node_id: str) -> None:
    assert pinned(node_id) == {"label_selector": {HOME: "here"}}


@pytest.mark.parametrize("node_id", [OTHER, "b" * 56])
def test_other_nodes_are_found_by_their_id_and_by_nothing_else(node_id: str) -> None:
    strategy = pinned(node_id)["scheduling_strategy"]
    assert (strategy.node_id, strategy.soft) == (node_id, False)


def test_what_belongs_to_a_database_may_go_on_elsewhere() -> None:
    assert anywhere({}) == {}
    assert anywhere({"may": "coordinate"}) == {"label_selector": {"may": "coordinate"}}


class Absent:
    """Ray's answers about an actor that it is starting again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self._answers = list(answers)
        self.now = 0.0
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(starting.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(starting.time, "sleep", self._sleep)

    def _get(self, ref: object, *, timeout: float) -> Any:
        assert timeout > 0
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_coordinator_that_is_being_started_again_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    away = rex.ActorUnavailableError("it is restarting", None)
    ray_says = Absent(monkeypatch, away, away, "ready")
    assert starting._until_there(object) == "ready"
    assert 0 < ray_says.now < 1


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_says = Absent(monkeypatch, rex.ActorUnavailableError("it is restarting", None))
    with pytest.raises(rex.ActorUnavailableError):
        starting._until_there(object)
    assert 60 <= ray_says.now < 61


def test_one_that_is_dead_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_says = Absent(monkeypatch, rex.ActorDiedError())
    with pytest.raises(rex.ActorDiedError):
        starting._until_there(object)
    assert ray_says.now == 0


@pytest.mark.parametrize("error", [rex.ActorUnavailableError("it is restarting", None), rex.ActorDiedError()])
def test_whoever_asks_where_a_coordinator_is_now_is_told_at_once_that_nobody_knows(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ray_says = Absent(monkeypatch, error)
    actor = SimpleNamespace(ready=SimpleNamespace(remote=object))
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    assert starting.again("audit", "client") is None
    assert ray_says.now == 0
