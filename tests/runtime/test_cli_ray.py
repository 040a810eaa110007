"""The command line on real Ray: a runtime that stays, and runs that are killed and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from polling import eventually

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

AGENTS = '''
import time

class Counter:
    """Counts words, slowly; notes each row that it begins."""
    def __init__(self, notes: str = "", pause_s: float = 0.0):
        self.notes, self.pause_s = notes, pause_s
    def run(self, task, ctx):
        text = task.prompt
        if self.notes:
            with open(self.notes, "a") as file:
                file.write(text.split()[0] + "\\n")
        print("an agent says:", text)
        time.sleep(self.pause_s)
        if "bad" in text:
            raise ValueError(f"cannot count {text!r}")
        return len(text.split())
'''
ROWS = 60


class Place:
    """A directory with a team, and a home of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "people.py").write_text(AGENTS)
        rows = [{"id": f"r{n:02d}", "text": f"r{n:02d} " + ("bad" if n == 7 else "x " * (n % 5))} for n in range(ROWS)]
        (directory / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def team(self, *, pause_s: float = 0.0) -> None:
        options = f"{{notes: '{self.directory / 'notes'}', pause_s: {pause_s}}}"
        agents = f"[{{use: 'people.py:Counter', count: 2, capabilities: [count], options: {options}}}]"
        job = "{needs: [count], prompt: text, key: id}"
        ray = "{num_cpus: 2, object_store_mb: 100}"
        (self.directory / "team.yaml").write_text(f"name: cli\nagents: {agents}\njob: {job}\nray: {ray}\n")

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FLOWRAY_"))}
        environment["HOME"] = str(self.directory / "home")
        return subprocess.Popen(
            [sys.executable, "-m", "flowray.cli", *arguments],
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str) -> tuple[int, str, str]:
        process = self.begin(*arguments)
        try:
            out, err = process.communicate(timeout=150)
        finally:
            process.kill()
        return process.returncode, out, err

    def ask(self, *arguments: str) -> Any:
        code, out, err = self.call(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    def noted(self) -> list[str]:
        notes = self.directory / "notes"
        return notes.read_text().split() if notes.exists() else []

    def left(self) -> list[str]:
        """Command lines of Ray processes that live in our home."""
        found = []
        for process in psutil.process_iter(["environ", "cmdline"]):
            if (process.info["environ"] or {}).get("HOME") == str(self.directory / "home"):
                found.append(" ".join(process.info["cmdline"] or [])[:120])
        return [line for line in found if line]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place whose runtime, if it has one, is gone afterwards."""
    (tmp_path / "home").mkdir()
    made = Place(tmp_path)
    yield made
    if (tmp_path / "home" / ".flowray" / "cli" / "up.json").exists():
        made.call("down", "--name", "cli")


def test_a_runtime_that_stays(place: Place) -> None:
    place.team()
    home = place.directory / "home"
    up = place.ask("up", "team.yaml")
    assert up["started"] is True
    for file in (".flowray/cli/up.json", ".flowray/cli/up.log", ".ray/auth_token"):
        assert (home / file).stat().st_mode & 0o777 == 0o600, file
    assert not up["address"].endswith(":6379")
    assert place.ask("up", "team.yaml")["started"] is False
    here = ("--name", "cli")

    status = place.ask("status", *here)
    assert (status["name"], status["queued"], len(status["agents"])) == ("cli", 0, 2)
    agents = place.ask("agents", *here)["agents"]
    assert [(a["agent_id"], a["state"], a["capabilities"]) for a in agents] == [
        ("counter-0", "ready", ["count"]),
        ("counter-1", "ready", ["count"]),
    ]
    assert "secondary: 2 agents, 2 idle" in place.call("agents", *here)[1]

    answer = place.ask("submit", "one two three", "--needs", "count", "--key", "k", *here)
    assert (answer["state"], answer["value"]) == ("succeeded", 3)
    again = place.ask("submit", "one two three", "--needs", "count", "--key", "k", *here)
    assert again["task_id"] == answer["task_id"]
    code, out, _ = place.call("submit", "one two", "--needs", "count", *here)
    assert (code, out) == (0, "2\n")
    code, _, err = place.call("submit", "x", "--needs", "cuont", *here)
    assert code == 1
    assert "did you mean 'count'?" in err

    assert place.ask("drain", "counter-0", "counter", *here)["agents"] == ["counter-0", "counter-1"]
    assert [a["incarnation"] for a in place.ask("agents", *here)["agents"]] == [2, 2]
    code, _, err = place.call("drain", "10.99.99.99", *here)
    assert (code, "no living node is called '10.99.99.99'" in err) == (2, True)
    node = place.ask("status", *here)["nodes"][0]["address"]
    assert "coordinator's own node" in place.call("drain", node, *here)[2]

    told = place.ask("story", answer["task_id"], *here)
    assert [line["what"] if isinstance(line, dict) else line[1] for line in told["lines"]] == [
        *("accepted", "started", "succeeded"),
    ]
    assert "It succeeded" in place.call("story", answer["task_id"], "--explain", *here)[1]
    code, _, err = place.call("story", "no-such-task", *here)
    assert (code, "no task has the id no-such-task" in err) == (1, True)

    code, out, err = place.call("submit", "bad", "--needs", "count", *here)
    assert (code, out) == (1, "")
    assert "ValueError: cannot count 'bad'" in err
    assert "Traceback" not in err
    letters = place.ask("dead-letters", "list", *here)["letters"]
    assert [letter["task"]["prompt"] for letter in letters] == ["bad"]
    dead = letters[0]["task"]["id"]
    assert "cannot count 'bad'" in place.call("dead-letters", "show", dead, *here)[1]
    replayed = place.ask("dead-letters", "replay", dead, *here)
    assert replayed["replay_of"] == dead
    assert place.ask("dead-letters", "purge", dead, *here)["purged"] is True
    assert place.call("dead-letters", "purge", dead, *here)[0] == 1

    ended = place.ask("down", *here)
    assert ended["processes_ended"] >= 5
    assert place.left() == []
    assert place.call("status", *here)[0] == 1


def test_accepted_tasks_are_there_after_down_and_up(place: Place) -> None:
    place.team()
    place.ask("up", "team.yaml", "--no-dashboard")
    answer = place.ask("submit", "one two", "--needs", "count", "--name", "cli")
    place.ask("down", "--name", "cli")
    assert place.ask("up", "team.yaml", "--no-dashboard")["dashboard"] is None
    told = place.ask("story", answer["task_id"], "--name", "cli")
    assert told["state"] == "succeeded"


def test_a_killed_run_goes_on_where_it_was(place: Place) -> None:
    place.team(pause_s=0.2)
    first = place.begin("run", "team.yaml", "in.jsonl", "-o", "out.parquet", "--no-timing")
    eventually(lambda: len(place.noted()) >= 12, "tasks begun")
    first.kill()
    first.communicate()
    eventually(lambda: place.left() == [], "everything of the killed run is gone")
    begun = place.noted()

    code, out, err = place.call(
        "run", "team.yaml", "in.jsonl", "-o", "out.parquet", "--no-timing", "--json", "--kill-one"
    )
    document = json.loads(out)  # one document, although agents print and one of them is killed
    assert code == 1, err  # row 7 is bad
    assert (document["done"], document["failed"]) == (ROWS, 1)
    assert 8 <= document["resumed"] <= len(begun)
    assert f"resumed: {document['resumed']} of {ROWS} already done" in err
    assert document["killed"].startswith("counter-")
    assert document["tasks_moved"] >= 1
    repeated = len(place.noted()) - ROWS
    assert repeated <= 2 + 2 + 1, "only what was running when the driver, and then one agent, was killed ran twice"
    assert place.left() == []

    assert place.call("run", "team.yaml", "in.jsonl", "-o", "seq.parquet", "--no-timing", "--sequential")[0] == 1
    assert (place.directory / "seq.parquet").read_bytes() == (place.directory / "out.parquet").read_bytes()


def test_ctrl_c_stops_everything_and_says_how_to_go_on(place: Place) -> None:
    place.team(pause_s=0.2)
    run = place.begin("run", "team.yaml", "in.jsonl", "-o", "out")
    eventually(lambda: len(place.noted()) >= 4, "tasks begun")
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "")
    assert "interrupted: run the same command again to go on" in err
    assert "Traceback" not in err
    assert place.left() == []
