"""The command line without Ray: answers, errors as sentences, exit codes, and what a person sees while waiting."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from flowray import errors
from flowray.cli import app
from flowray.cli.failover import KillOne
from flowray.cli.place import Place, job_name
from flowray.cli.progress import Progress, one_line
from flowray.cli.screen import Screen, overrides, plain_data
from flowray.config import AgentConfig, Config, JobConfig
from flowray.core.model import Outcome, StoryLine, TaskId
from flowray.core.states import TaskState
from flowray.jobs import Result
from flowray.runtime import cluster
from flowray.runtime.jobs import JobEvent
from flowray.runtime.runtime import Runtime
from flowray.runtime.views import AgentView, Status

COMMANDS = [
    *(
        ["up"],
        ["down"],
        ["status"],
        ["agents"],
        ["drain"],
        ["run"],
        ["submit"],
        ["follow"],
        ["story"],
        ["doctor"],
        ["version"],
    ),
    *(["dead-letters", "list"], ["dead-letters", "show"], ["dead-letters", "replay"], ["dead-letters", "purge"]),
    *(["config", "validate"], ["config", "show"], ["config", "schema"]),
    *(
        ["router", "train"],
        ["router", "evaluate"],
        ["router", "prune"],
        ["router", "quantize"],
        ["router", "inspect"],
        ["router", "explain"],
    ),
]
Call = Callable[..., tuple[int, str, str]]

AGENTS = '''
from flowray.jobs import Report, Request

class Counter:
    """Counts words; "bad" is too much for it."""
    def __init__(self, factor: int = 1):
        self.factor = factor
    def run(self, task):
        text = task.prompt or task.payload["text"]
        if "bad" in text:
            raise ValueError(f"cannot count {text!r}")
        return self.factor * len(text.split())

class Size:
    def run(self, task, ctx):
        with open(task.payload["path"]) as file:
            return {"path": task.prompt, "size": len(file.read())}

class Interrupted:
    def run(self, task):
        raise KeyboardInterrupt

class Once:
    """A job of one task."""
    def __init__(self, path, word="x"):
        self.path, self.word = path, word
    def begin(self):
        return [Request(key="one", prompt=self.word * 3)]
    def on_result(self, result):
        self.value = result.value
        return []
    def expected(self):
        return 1
    def finish(self, out):
        return Report(headline=f"said {self.value}", figures={"words": self.value}, table=(("a", "b"), ("1", "2")))
'''


@pytest.fixture
def flowray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("FLOWRAY_", "RAY_"))]:
        monkeypatch.delenv(name)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), out, err

    return call


@pytest.fixture
def team(tmp_path: Path) -> Callable[..., Path]:
    """A team file beside its agents."""
    (tmp_path / "people.py").write_text(AGENTS)

    def make(agent: str = "people.py:Counter", job: str = "{prompt: text, key: id}", **more: str) -> Path:
        extra = "".join(f"{key}: {value}\n" for key, value in more.items())
        (tmp_path / "team.yaml").write_text(f"name: demo\nagents: [{{use: '{agent}'}}]\njob: {job}\n{extra}")
        return tmp_path / "team.yaml"

    return make


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three rows, one of them too much for the counter."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"id": "b", "text": "x y"}\n{"id": "a", "text": "x"}\n{"id": "c", "text": "bad"}\n')
    return file


# ── the shape of it ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("arguments", [[], *COMMANDS], ids=lambda words: " ".join(words) or "flowray")
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom flowray.cli import main\n"
        f"try: main({[*arguments, '--help']!r})\nexcept SystemExit as e: assert not e.code\n"
        "heavy = sorted({'ray', 'pandas', 'pyarrow', 'numpy', 'torch'} & set(sys.modules))\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("--json" in done.stdout) == bool(arguments)


def test_wrong_usage_is_2(flowray: Call) -> None:
    for words in (["nonsense"], ["run"], ["status", "--nonsense"], ["submit", "x", "--priority", "high"]):
        code, out, err = flowray(*words)
        assert (code, out) == (2, ""), words
        assert "Usage:" in err


def test_every_error_of_ours_has_an_exit_code_and_can_be_told(flowray: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [
        errors.ConfigError("a.b", "is wrong", "try c"),
        errors.InvalidTask("prompt", "too long"),
        errors.QueueFull("t1", "full", 1.0),
        errors.UnknownCapability("t1", "nobody can"),
        errors.TaskFailed("t1", "ValueError: no", "story", "ValueError", "Traceback (most recent call last):\n ..."),
        errors.WaitTimeout("no outcome of task t1", 3.0),
        errors.UnknownTask("no task has the id t1"),
        errors.StoreFenced("taken over"),
        errors.CoordinatorUnavailable("no answer"),
        errors.AgentStartFailed("a-0 does not start"),
        errors.NotConnected("nobody there"),
        errors.MissingExtra("pip install 'flowray[audit]'"),
    ]
    for error in samples:

        def fail(*_: Any, error: errors.FlowrayError = error) -> Any:
            raise error

        monkeypatch.setattr("flowray.cli.settings.configuration.load", fail)
        code, out, err = flowray("config", "validate")
        assert code == (2 if isinstance(error, errors.ConfigError | errors.InvalidTask) else 1)
        assert out == ""
        assert err.startswith("flowray: ")
        assert "Traceback" not in err
        document = json.loads(flowray("config", "validate", "--json")[1])
        assert document["error"]["type"] == type(error).__name__
    code, _, err = flowray("config", "validate", "--debug")
    assert "Traceback" in err


def test_a_bug_is_one_line_unless_asked(flowray: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("flowray.cli.settings.configuration.load", broken)
    code, _, err = flowray("config", "validate")
    assert code == 1
    assert err.splitlines()[0] == "flowray: this is a bug: ZeroDivisionError: division by zero"
    assert "Traceback" not in err
    assert "Traceback" in flowray("--debug", "config", "validate")[2]


def test_ctrl_c_is_130(flowray: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowray.cli.settings.configuration.load", interrupted)
    assert flowray("config", "validate")[0] == 130


def test_a_reader_that_goes_away_is_no_error_of_ours() -> None:
    line = f"{sys.executable} -m flowray.cli config schema; echo $? >&2"
    done = subprocess.run(["bash", "-c", f"({line}) | head -c 10"], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


# ── config, doctor, version ──────────────────────────────────────────────────────────────────────────────────────────


def test_version(flowray: Call) -> None:
    code, out, _ = flowray("version", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"flowray", "ray", "python"}


def test_config_validate_names_what_is_wrong_and_what_was_meant(flowray: Call, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("tirs: {}")
    code, out, err = flowray("config", "validate", "c.yaml")
    assert (code, out) == (2, "")
    assert err == "flowray: tirs: there is no such setting (did you mean 'tiers'?)\n"
    assert flowray("config", "validate", "none.yaml")[0] == 2


def test_config_show_merges_everything(flowray: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("name: file")
    monkeypatch.setenv("FLOWRAY_SEED", "5")
    code, out, _ = flowray("config", "show", "c.yaml", "--set", "tiers.primary.agents=2", "--json")
    shown = json.loads(out)
    assert code == 0
    assert (shown["name"], shown["seed"], shown["tiers"]["primary"]["agents"]) == ("file", 5, 2)
    (tmp_path / "again.yaml").write_text(flowray("config", "show", "c.yaml")[1])
    assert json.loads(flowray("config", "show", "again.yaml", "--json")[1])["name"] == "file"


@pytest.mark.parametrize("setting", ["novalue", "=3", "a.b=["])
def test_a_malformed_set(flowray: Call, setting: str) -> None:
    code, _, err = flowray("config", "show", "--set", setting)
    assert code == 2
    assert "--set" in err


def test_set_takes_yaml_values() -> None:
    assert overrides(["a=3", "b=[x, y]", "c=", "d=x=y"]) == {"a": 3, "b": ["x", "y"], "c": "", "d": "x=y"}


def test_doctor_lists_findings_and_fails_when_one_does(flowray: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = flowray("doctor", "--json")
    report = json.loads(out)
    assert code == (0 if report["ok"] else 1)
    assert {"Python", "Ray", "memory", "journal", "Ray token"} <= {one["name"] for one in report["findings"]}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code, out, _ = flowray("doctor")
    assert code == 1
    assert "fail  Ray token" in out
    assert "-> unset RAY_AUTH_MODE" in out


def test_colours_only_on_a_terminal_and_not_against_the_users_will(tmp_path: Path) -> None:
    def on_terminal(**environment: str) -> bytes:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "flowray.cli", "doctor"]
        with subprocess.Popen(
            command, stdout=theirs, env={**os.environ, "HOME": str(tmp_path), **environment}
        ) as process:
            os.close(theirs)
            process.wait(60)
            text = b""
            while True:
                try:
                    text += os.read(ours, 65536)
                except OSError:
                    break
        os.close(ours)
        return text

    assert b"\x1b[" in on_terminal(NO_COLOR="")
    assert b"\x1b[" not in on_terminal(NO_COLOR="1")
    piped = subprocess.run([sys.executable, "-m", "flowray.cli", "doctor"], capture_output=True, timeout=60)
    assert b"\x1b[" not in piped.stdout


# ── commands that need a runtime, without one ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["agents"],
        ["submit", "x"],
        ["follow", "t"],
        ["story", "t"],
        ["dead-letters", "list"],
        ["dead-letters", "purge", "t"],
    ],
    ids=" ".join,
)
def test_without_a_runtime_the_way_out_is_told(
    flowray: Call, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowray.runtime.service._LAST_STARTED", Path("/nonexistent"))
    code, out, err = flowray(*words)
    assert (code, out) == (1, "")
    assert "no runtime 'default' is up" in err
    assert "flowray up" in err


def test_ray_of_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    asked: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda *arguments, **options: asked.append(options))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # imported, and no more
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(errors.NotConnected):
        Runtime.connect("nobody")
    assert asked == []


def test_an_address_where_nobody_answers(flowray: Call) -> None:
    began_at = time.monotonic()
    code, _, err = flowray("status", "--address", "127.0.0.1:1")
    assert code == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in err
    assert time.monotonic() - began_at < 10
    assert flowray("status", "--address", "nonsense")[0] == 2


def test_down_of_what_is_not_up(flowray: Call) -> None:
    code, _, err = flowray("down")
    assert code == 1
    assert "no runtime 'default' was started" in err


def test_a_payload_that_is_no_json(flowray: Call) -> None:
    code, _, err = flowray("submit", "x", "--payload-json", "{")
    assert code == 2
    assert "--payload-json: is not JSON" in err


@pytest.mark.parametrize(
    ("option", "said", "problem"),
    [
        ("--tools-json", "[{]", "--tools-json: is not JSON"),
        ("--tools-json", '{"name": "a"}', "--tools-json: wants a list of tools"),
        ("--count", "n_tools", "--count: wants NAME=NUMBER"),
    ],
)
def test_offers_that_are_none(flowray: Call, option: str, said: str, problem: str) -> None:
    code, _, err = flowray("submit", "x", option, said)
    assert code == 2
    assert problem in err


# ── run, in this process ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sequential_run_writes_the_table(
    flowray: Call, team: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    code, out, err = flowray("run", team(), texts, "-o", "results.parquet", "--sequential")
    assert code == 1, "one task failed"
    assert out.splitlines()[0] == "3 results, 1 of them failed"
    assert "stages:" in err
    frame = pd.read_parquet(tmp_path / "results.parquet")
    assert frame["key"].tolist() == ["a", "b", "c"]
    assert frame["value"].tolist()[:2] == [1, 2]
    assert frame["error"].tolist()[2] == "ValueError: cannot count 'bad'"


def test_json_is_one_document_and_quiet_is_quiet(flowray: Call, team: Callable[..., Path], texts: Path) -> None:
    code, out, err = flowray("run", team(), texts, "-o", "out", "--sequential", "--json", "--quiet", "--no-timing")
    document = json.loads(out)
    assert (code, document["done"], document["failed"], document["sequential"]) == (1, 3, 1, True)
    assert document["files"] == ["out/results.parquet"]
    assert err == ""


def test_a_module_beside_the_team_file(flowray: Call, team: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    (tmp_path / "beside_the_team.py").write_text(AGENTS)
    try:
        code, _, err = flowray("run", team("beside_the_team:Counter"), texts, "-o", "r.jsonl", "--sequential")
    finally:
        sys.path.remove(str(tmp_path))
    assert code == 1, err
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3


def test_a_directory(flowray: Call, team: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "deep" / "b.txt").write_text("bb")
    (tmp_path / "texts" / "a.md").write_text("a")
    file = team("people.py:Size", "{glob: '**/*.txt'}")
    code, _, err = flowray("run", file, "texts", "-o", "r.jsonl", "--sequential", "--no-timing")
    assert code == 0, err
    value = '{"path":"deep/b.txt","size":2}'
    assert json.loads((tmp_path / "r.jsonl").read_text())["value"] == value


def test_a_job_class_drives_itself(flowray: Call, team: Callable[..., Path], texts: Path) -> None:
    file = team(job="{use: 'people.py:Once', options: {word: 'hey '}}")
    code, out, _ = flowray("run", file, texts, "-o", "out", "--sequential")
    assert code == 0
    assert out.splitlines() == ["said 3", "  words            3", "  a  b", "  1  2"]


@pytest.mark.parametrize(
    ("agent", "job", "rows", "out", "problem"),
    [
        ("people.py:Counter", "{prompt: txt}", None, "r.jsonl", "in.jsonl:1: has no column 'txt' (job.prompt)"),
        ("people.py:Counter", "{prompt: text}", '{"text": 1}\n{', "r.jsonl", "in.jsonl:2: is not JSON"),
        ("people.py:Counter", "{prompt: text}", None, "r.xlsx", "r.xlsx: cannot write .xlsx"),
        ("people.py:Nobody", "{}", None, "r.jsonl", "agents[0].use: people.py has no 'Nobody'"),
        ("nobody.py:Counter", "{}", None, "r.jsonl", "agents[0].use: there is no file"),
        ("no_such_module_x:Counter", "{}", None, "r.jsonl", "agents[0].use: there is no module 'no_such_module_x'"),
        ("people.py:AGENTS", "{}", None, "r.jsonl", "agents[0].use: people.py has no 'AGENTS'"),
        ("json:JSONDecoder", "{}", None, "r.jsonl", "agents[0].use: JSONDecoder: an agent class needs a method run"),
        ("people.py:Counter", "{use: 'people.py:Size'}", None, "out", "job.options: people.py:Size does not take them"),
        ("people.py:Counter", "{use: 'people.py:Counter'}", None, "out", "job.use: people.py:Counter is no job"),
        ("people.py:Counter", "{use: 'people.py:Once', options: {x: 1}}", None, "out", "job.options:"),
    ],
)
def test_mistakes_of_a_run_are_sentences(
    flowray: Call,
    team: Callable[..., Path],
    texts: Path,
    agent: str,
    job: str,
    rows: str | None,
    out: str,
    problem: str,
) -> None:
    if rows is not None:
        texts.write_text(rows)
    code, stdout, err = flowray("run", team(agent, job), texts, "-o", out, "--sequential")
    assert (code, stdout) == (2, "")
    assert problem in err
    assert "Traceback" not in err


def test_inputs_that_cannot_be_read(flowray: Call, team: Callable[..., Path], texts: Path) -> None:
    for name in ("none.jsonl", "none.csv", "none"):
        code, _, err = flowray("run", team(), name, "-o", "r.jsonl", "--sequential")
        assert (code, "no such file" in err) == (2, True)
    code, _, err = flowray("run", team(job="{use: 'people.py:Once'}"), "none", "-o", "out", "--sequential")
    assert (code, "no such file" in err) == (2, True)
    (texts.parent / "in.xlsx").touch()
    code, _, err = flowray("run", team(), "in.xlsx", "-o", "r.jsonl", "--sequential")
    assert (code, "cannot read .xlsx" in err) == (2, True)


def test_a_team_of_nobody(flowray: Call, tmp_path: Path, texts: Path) -> None:
    (tmp_path / "t.yaml").write_text("name: empty")
    code, _, err = flowray("run", "t.yaml", texts, "-o", "r.jsonl", "--sequential")
    assert (code, "names no agents" in err) == (2, True)


def test_a_missing_extra_is_an_install_command(
    flowray: Call, team: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "lacking.py").write_text(
        "from flowray.errors import MissingExtra\nraise MissingExtra(\"pip install 'flowray[audit]'\")"
    )
    code, _, err = flowray("run", team("lacking.py:X"), texts, "-o", "r.jsonl", "--sequential")
    assert code == 1
    assert "pip install 'flowray[audit]'" in err


def test_agents_that_break_while_they_are_loaded_or_made(
    flowray: Call, team: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "breaking.py").write_text("1 / 0")
    _, _, err = flowray("run", team("breaking.py:X"), texts, "-o", "r.jsonl", "--sequential")
    assert "fails: ZeroDivisionError: division by zero" in err
    file = tmp_path / "team.yaml"
    file.write_text("agents: [{use: 'people.py:Counter', options: {factor: 1, colour: red}}]")
    code, _, err = flowray("run", file, texts, "-o", "r.jsonl", "--sequential")
    assert code == 2
    assert "agents[0]: cannot be made: TypeError" in err


def test_nobody_can_what_is_needed(flowray: Call, team: Callable[..., Path], texts: Path) -> None:
    code, _, err = flowray("run", team(job="{needs: [fly]}"), texts, "-o", "r.jsonl", "--sequential")
    assert code == 1
    assert "no agent has fly" in err


def test_capabilities_of_the_team_file_count(
    flowray: Call, team: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    file = team()
    file.write_text("agents: [{use: 'people.py:Counter', capabilities: [fly]}]\njob: {needs: [fly], prompt: text}")
    assert flowray("run", file, texts, "-o", "r.jsonl", "--sequential")[1].startswith("3 results")


def test_an_interrupted_sequential_run_says_what_is_lost(flowray: Call, team: Callable[..., Path], texts: Path) -> None:
    code, out, err = flowray("run", team("people.py:Interrupted"), texts, "-o", "r.jsonl", "--sequential")
    assert (code, out) == (130, "")
    assert err == "interrupted: nothing of a sequential run is kept\n"


def test_nobody_to_kill_in_a_sequential_run(flowray: Call, team: Callable[..., Path], texts: Path) -> None:
    assert flowray("run", team(), texts, "-o", "r.jsonl", "--sequential", "--kill-one")[0] == 2


def test_two_runs_over_one_output(flowray: Call, team: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    with Place.of(tmp_path / "r.jsonl", Config()):
        code, _, err = flowray("run", team(), texts, "-o", tmp_path / "r.jsonl", "--sequential")
    assert code == 1
    assert f"another `flowray run` (process {os.getpid()}) works on this output" in err
    assert flowray("run", team(), texts, "-o", tmp_path / "r.jsonl", "--sequential")[1].startswith("3 results")


# ── where a run keeps its state ──────────────────────────────────────────────────────────────────────────────────────


def test_the_journal_lies_with_the_output(tmp_path: Path) -> None:
    assert Place.of(tmp_path / "out", Config()).journal.parent == tmp_path / "out/.flowray"
    assert Place.of(tmp_path / "a.parquet", Config()).journal.parent == tmp_path / ".flowray/a.parquet"
    named = Place.of(tmp_path / "out", Config(journal="/somewhere"))
    assert named.journal == Path("/somewhere")
    assert named.configured(Config(journal="/somewhere")) == Config(journal="/somewhere")


def test_a_changed_team_has_a_journal_of_its_own(tmp_path: Path) -> None:
    """A journal keeps the agents that it knows as they are; only their number may change."""

    def of(**changes: Any) -> Path:
        return Place.of(tmp_path, Config(agents=[AgentConfig(**{"use": "a:B", **changes})])).journal

    assert of() == of(count=5)
    assert len({of(), of(use="a:C"), of(options={"x": 1}), of(tier="primary"), of(slots=2)}) == 5


def test_starting_over_removes_our_journal_but_never_the_users(tmp_path: Path) -> None:
    for config in (Config(), Config(journal=str(tmp_path / "mine"))):
        place = Place.of(tmp_path / "out", config)
        place.journal.mkdir(parents=True)
        place.forget()
        assert place.journal.exists() == bool(config.journal)


def test_a_job_is_told_apart_by_what_can_change_its_results() -> None:
    def of(job: JobConfig | None = None, **changes: Any) -> str:
        return job_name(Config(agents=[AgentConfig(**{"use": "a:B", **changes})], job=job))

    assert of() == of(count=5) == of(num_cpus=2.0) == of(slots=3)
    different = {of(), of(use="a:C"), of(options={"x": 1}), of(capabilities=["y"]), of(JobConfig(use="j:J"))}
    assert len(different) == 5


# ── what a person sees ───────────────────────────────────────────────────────────────────────────────────────────────


def event(done: int, **changes: Any) -> JobEvent:
    about: dict[str, Any] = {"expected": 10, "resumed": 0, "failed": 0, "open": 3, "elapsed_s": 1.0}
    return JobEvent(done=done, **{**about, **changes})


def busy(agent_id: str = "b-0", **changes: Any) -> AgentView:
    about = {"name": "b", "tier": "secondary", "state": "ready", "incarnation": 1, "pid": 7, "held": 1}
    return AgentView(agent_id=agent_id, **{**about, **changes})


def test_progress_in_a_line_and_in_a_picture() -> None:
    progress = Progress("demo", quiet=True)
    assert progress.line() == "demo: starting"
    progress.update(event(4, resumed=2, failed=1, result=Result(key="k", value={"a": [1, 2], "b": "x"})))
    progress._agents = (busy(), busy("b-1", held=0))
    assert progress.line() == "demo: 4/10 tasks, 0.0/s, 1 of 2 agents busy, resumed 2, 1 failed"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(progress.picture())
    text = console.export_text()
    assert "4/10" in text
    assert "secondary" in text
    assert "2 agents, 1 busy, 1 idle" in text
    assert "k: a 2, b x" in text


def test_results_in_a_line() -> None:
    assert one_line(Result(key="k", value=[1, 2])) == "k: 2 items"
    assert one_line(Result(key="k", value="a\n b")) == "k: a b"
    assert one_line(Result(key="k", error="E: x\ny")) == "k: failed: E: x y"
    assert len(one_line(Result(key="k", value="x" * 1000))) == 200


class FakeRuntime:
    """Agents to be killed."""

    def __init__(self, *agents: AgentView) -> None:
        self.agents, self.ended = agents, list[str]()

    def status(self) -> Status:
        return Status(name="x", epoch=1, at_utc="", journal="", agents=self.agents)

    def kill_agent(self, agent_id: str) -> None:
        self.ended.append(agent_id)


def test_kill_one_waits_for_its_share_kills_a_busy_agent_once_and_tells_what_followed() -> None:
    runtime, said = FakeRuntime(busy("a-0", held=0), busy("b-0"), busy("c-0", state="starting")), list[str]()
    killer = KillOne(runtime, said.append)  # type: ignore[arg-type]
    killer(event(2))
    assert runtime.ended == []
    killer(event(3))
    killer(event(4))
    assert runtime.ended == ["b-0"]
    assert said == ["killed secondary/b-0 (process 7) while it held 1 task"]
    lines = (StoryLine(1.0, "requeued", 1, "b-0"), StoryLine(1.05, "started", 2, "a-0", "failover"))
    moved = Outcome(task_id=TaskId("t1"), state=TaskState.SUCCEEDED, attempts=2, story=lines)
    killer(event(5, outcome=moved))
    killer(event(5, outcome=moved))
    assert said[1:] == ["failover: task t1 went on to a-0, 50 ms after the loss was noticed"]
    assert killer.facts() == {"killed": "b-0", "tasks_moved": 1}


def test_kill_one_counts_only_what_this_run_does() -> None:
    runtime = FakeRuntime(busy())
    KillOne(runtime, lambda _: None)(event(8, resumed=8))  # type: ignore[arg-type]
    assert runtime.ended == []


def test_plain_data_leaves_nothing_out() -> None:
    assert plain_data(busy())["service_s"] is None
    assert plain_data({1: b"x", "p": Path("/a"), "s": {1}}) == {"1": "eA==", "p": "/a", "s": [1]}


def test_what_agents_say_after_the_answer_is_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's thread prints what agents say for as long as this process is in the cluster, also after the answer."""
    joined = False

    def leave() -> None:
        nonlocal joined
        print("an agent says: one two")  # noqa: T201 - its last words come while it leaves
        joined = False

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: joined))
    monkeypatch.setattr(cluster, "leave", leave)
    screen = Screen(as_json=True)
    with screen.alone():
        joined = True
    assert not joined
    screen.answer("", {"name": "cli"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"name": "cli"}
    assert "an agent says" in err


def test_a_cluster_that_was_joined_before_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(cluster, "leave", lambda: pytest.fail("others use it"))
    with Screen(as_json=True).alone():
        pass
