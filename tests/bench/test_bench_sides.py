"""Who is measured against whom."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import registry, sides
from bench.environments import PINS
from bench.measure import FLOWRAY, Plan
from bench.members import messaging, scale, tasks
from bench.sides import Side

MEMBERS = {"messaging": messaging.SIDES, "tasks": tasks.SIDES, "scale": scale.SIDES}


@pytest.mark.parametrize("member", MEMBERS)
def test_every_side_has_a_worker_and_its_environment_has_pins(member: str) -> None:
    for name, side in MEMBERS[member].items():
        assert find_spec(f"bench.workers.{side.worker}") is not None, name
        assert not side.environment or (PINS / f"{side.environment}.txt").exists(), name


@pytest.mark.parametrize("member", MEMBERS)
def test_the_ratio_is_to_plain_ray(member: str) -> None:
    assert next(iter(MEMBERS[member])) == FLOWRAY
    assert registry.find(member).peers[0] == "ray"


def test_a_turn_gives_the_sides_own_settings_and_runs_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def run_worker(worker: str, settings: dict[str, Any], **how: Any) -> dict[str, float]:
        calls.append((worker, settings, how))
        return {"m": 1.0}

    monkeypatch.setattr(sides, "run_worker", run_worker)
    monkeypatch.setattr(sides, "python_of", lambda name: Path(f"/env/{name}"))
    there = {FLOWRAY: Side("a"), "ray": Side("b", {"x": 2}), "peer": Side("c", environment="peer")}
    turns = sides.turns_of(there, Plan(peers=("peer",)), {"x": 1}, 9.0)
    assert list(turns) == [FLOWRAY, "peer"]
    assert [turn() for turn in turns.values()] == [{"m": 1.0}] * 2
    assert there["ray"].turn({"x": 1, "y": 1}, 9.0) == {"m": 1.0}
    assert calls == [
        ("a", {"x": 1}, {"timeout_s": 9.0}),
        ("c", {"x": 1}, {"timeout_s": 9.0, "python": Path("/env/peer")}),
        ("b", {"x": 2, "y": 1}, {"timeout_s": 9.0}),
    ]


def test_versions_are_those_of_the_peers_that_were_there() -> None:
    found = sides.versions(messaging.SIDES, [FLOWRAY, "ray", "autogen", "autogen_grpc"])
    assert set(found) == {"autogen-core", "autogen-ext", "autogen's grpcio"}


def test_scale_takes_one_turn_with_few_and_one_with_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(self: Side, length: dict[str, Any], timeout_s: float) -> dict[str, float]:
        agents = length["agents"]
        found = {"cluster_start_s": 1.0, "ready_s": 1.0 + agents, "added_s": float(agents), "private_mb": 50.0}
        return found | ({"asks_per_s": 1000.0 / agents} if self.worker == "ray_scale" else {"tasks_per_s": 5.0})

    monkeypatch.setattr(Side, "turn", turn)
    monkeypatch.setattr(scale, "run_worker", lambda name, case, timeout_s: {"us_per_task": float(case["agents"])})
    found = scale.Scale().run(Plan(repeats=2, peers=("ray",)))
    results = {m.metric: m for m in found.measurements}
    assert results["agents120_ready_s"].flowray == [121.0, 121.0]
    assert results["agent_private_mb"].peers == {"ray": [50.0, 50.0]}
    assert results["asks_120_to_24"].peers == {"ray": pytest.approx([0.2, 0.2])}
    assert results["asks_120_to_24"].flowray == []
    assert results["tasks_120_to_24"].flowray == [1.0, 1.0]
    assert results["core_us_per_task_10000"].flowray == [10_000.0, 10_000.0]
    assert "coordinator_us_per_task_24" not in results
