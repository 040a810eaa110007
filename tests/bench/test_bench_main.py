"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest
from test_bench_report import SCHEMA

from bench import __main__ as command
from bench import registry
from bench.measure import Measurement
from bench.processes import ROOT, WorkerFailed


class Fake:
    """A member that needs nothing."""

    name = "fake"
    description = "nothing at all"

    def run(self, quick: bool, repeats: int | None = None) -> list[Measurement]:
        return [Measurement(metric="m", unit="s", flowray=[1.0] * (repeats or 2))]


class Broken(Fake):
    """A member whose side dies."""

    def run(self, quick: bool, repeats: int | None = None) -> list[Measurement]:
        raise WorkerFailed("it fell over")


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._PLACES, "fake", f"{__name__}:Fake")
    monkeypatch.setitem(registry._PLACES, "broken", f"{__name__}:Broken")


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


@pytest.mark.parametrize("arguments", [["fake", "--repeats", "0"], ["fake", "--quick", "--baseline"], []])
def test_bad_options_end_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2


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


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_tasks_run_from_end_to_end_and_none_is_lost(tmp_path: Path) -> None:
    found = _run("tasks", tmp_path)
    results = {r["metric"]: r for r in found["results"]}
    assert results["durable_tasks_lost"]["flowray"] == 0
    assert set(results["tasks_per_s"]["peers"]) == {"ray", "ray_no_task_events"}
    assert results["tasks_per_s"]["ratio"] > 0
    assert results["coordinator_us_per_task"]["peers"] == {}


def _run(name: str, out: Path) -> dict[str, list[dict[str, object]]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick", "--json", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    return found
