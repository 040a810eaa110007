"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from test_bench_report import SCHEMA

from bench import __main__ as command
from bench import registry, report
from bench.measure import FLOWRAY, Found, Measurement, Plan
from bench.processes import ROOT, WorkerFailed

_STREAMS = ("grpc_stream", "grpc_stream_tuned")


class Fake:
    """A member that needs nothing."""

    name = "fake"
    description = "nothing at all"
    peers: tuple[str, ...] = ("ray",)

    def run(self, plan: Plan) -> Found:
        values = [1.0] * (plan.repeats or 2)
        peers = {peer: values for peer in self.peers if plan.wants(peer)}
        return Found(measurements=[Measurement(metric="m", unit="s", flowray=values, peers=peers)])


class Broken(Fake):
    """A member whose side dies."""

    def run(self, plan: Plan) -> Found:
        raise WorkerFailed("it fell over")


class Early(Fake):
    """A member whose own side is not built yet."""

    def run(self, plan: Plan) -> Found:
        measurements = [Measurement(metric="m", unit="s", flowray=[], peers={"ray": [2.0, 2.0]})]
        return Found(measurements=measurements, absent={FLOWRAY: "not built yet"})


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._PLACES, "fake", f"{__name__}:Fake")
    monkeypatch.setitem(registry._PLACES, "broken", f"{__name__}:Broken")
    monkeypatch.setitem(registry._PLACES, "early", f"{__name__}:Early")


def test_list_names_every_member(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in registry.names())


def test_json_is_one_document_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["fake", "--json", "--quick", "--repeats", "4", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA)
    assert found["results"][0]["n"] == 4
    kept = list((tmp_path / "fake").iterdir())
    assert [json.loads(path.read_text()) for path in kept] == [found]


@pytest.mark.slow
def test_a_full_run_is_kept_and_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["fake", "--out", str(tmp_path)]) == 0
    assert "fake at" in capsys.readouterr().out
    assert {path.suffix for path in (tmp_path / "fake").iterdir()} == {".json", ".png", ".svg"}


@pytest.mark.parametrize("arguments", [["fak"], ["plot", "fak"]])
def test_a_bad_name_ends_with_2_and_a_hint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "did you mean 'fake'?" in printed.err


def test_only_the_peers_asked_for_take_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["fake", "--json", "--quick", "--peers", "", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["peers"] == {}
    assert command.main(["fake", "--quick", "--peers", "rai", "--out", str(tmp_path)]) == 2
    assert "did you mean 'ray'?" in capsys.readouterr().err


def test_an_absent_side_is_in_the_table_with_its_reason_and_makes_no_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "BASELINES", tmp_path / "baselines")
    assert command.main(["early", "--quick", "--out", str(tmp_path)]) == 0
    assert "flowray is absent: not built yet" in capsys.readouterr().out
    assert command.main(["early", "--baseline", "--out", str(tmp_path)]) == 1
    assert "no baseline: not built yet" in capsys.readouterr().err
    assert not (tmp_path / "baselines").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["fake", "--repeats", "0"],
        ["fake", "--quick", "--baseline"],
        ["fake", "--peers", "ray", "--baseline"],
        ["fake", "--peers-only", "--baseline"],
        [],
    ],
)
def test_bad_options_end_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2


def test_a_member_without_peers_has_nothing_left_without_flowray(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["core", "--peers-only"]) == 1
    assert "core failed: it has no peers" in capsys.readouterr().err


def test_a_failure_ends_with_1_and_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["broken", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "broken failed: it fell over" in printed.err


def test_a_plot_without_runs_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plot", "fake", "--out", str(tmp_path)]) == 1
    assert "run `python -m bench fake` first" in capsys.readouterr().err


@pytest.mark.slow
def test_the_core_runs_from_end_to_end(tmp_path: Path) -> None:
    found = _run("core", tmp_path)
    assert {r["metric"] for r in found["results"]} >= {"core_tasks_per_s_24", "core_us_per_task_waiting_90000"}


@pytest.mark.slow
def test_a_side_goes_when_its_benchmark_is_ended(tmp_path: Path) -> None:
    """`timeout 60 python -m bench tasks` must not leave a Ray behind."""
    bench = subprocess.Popen(
        [sys.executable, "-m", "bench", "core", "--out", str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 30
    while not children and time.monotonic() < deadline:
        children = psutil.Process(bench.pid).children()
        time.sleep(0.02)
    bench.terminate()
    assert bench.wait(60) == 143
    assert children
    assert not psutil.wait_procs(children, timeout=5)[1]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_messages_of_a_bare_stream_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without flowray's own side, which needs Ray."""
    chosen = ["--quick", "--json", "--peers-only", "--peers", ",".join(_STREAMS)]
    assert command.main(["messaging", *chosen, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA)
    results = {r["metric"]: r for r in found["results"]}
    assert found["absent"] == {}
    assert set(results) >= {"ask_p50_ms", "ask_p99_ms", "one_way_per_s", "open_1000_p99_ms"}
    assert all(set(r["peers"]) == set(_STREAMS) for r in results.values())
    assert results["ask_p50_ms"]["peers"]["grpc_stream"] <= results["ask_p99_ms"]["peers"]["grpc_stream"]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_messages_run_from_end_to_end_beside_ray(tmp_path: Path) -> None:
    found = _run("messaging", tmp_path, "ray_no_task_events")
    results = {r["metric"]: r for r in found["results"]}
    assert set(results["one_way_per_s"]["peers"]) == {"ray_no_task_events"}
    assert results["ask_p50_ms"]["ratio"] > 0
    assert not found["absent"]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_tasks_run_from_end_to_end_and_none_is_lost(tmp_path: Path) -> None:
    found = _run("tasks", tmp_path, "ray")
    results = {r["metric"]: r for r in found["results"]}
    assert results["durable_tasks_lost"]["flowray"] == 0
    assert set(results["tasks_per_s"]["peers"]) == {"ray"}
    assert results["tasks_per_s"]["ratio"] > 0
    assert results["coordinator_us_per_task"]["peers"] == {}


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_scale_runs_from_end_to_end(tmp_path: Path) -> None:
    """The quick run has other numbers of agents, and says so in the names of its metrics."""
    found = _run("scale", tmp_path)
    results = {r["metric"]: r for r in found["results"]}
    assert set(results) >= {"agents2_ready_s", "agents4_ready_s", "agent_private_mb", "core_us_per_task_10000"}
    assert results["agents4_ready_s"]["flowray"] > results["agents4_added_s"]["flowray"]
    assert results["asks_4_per_s"]["flowray"] > 0


def _run(name: str, out: Path, peers: str = "") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick", "--json", "--peers", peers, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    return found
