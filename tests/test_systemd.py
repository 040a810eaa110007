"""The unit that `flowray up --systemd` prints."""

from __future__ import annotations

import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowray.cli.app import app
from flowray.cli.systemd import unit_of


def parsed(text: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return parser


def test_the_unit_stays_with_the_head_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "team.yaml").write_text("name: crew\n")
    done = CliRunner().invoke(app, ["up", "team.yaml", "--systemd", "--host", "10.0.0.1", "--set", "ray.num_cpus=2"])
    assert done.exit_code == 0, done.output
    unit = parsed(done.output)
    assert unit["Unit"]["Description"] == "flowray runtime crew"
    service = unit["Service"]
    assert service["ExecStart"] == (
        f"{sys.executable} -m flowray.cli up {tmp_path}/team.yaml --set ray.num_cpus=2 --host 10.0.0.1"
        " --dashboard --timeout-s 120 --foreground"
    )
    assert (service["Restart"], service["KillMode"], service["WorkingDirectory"]) == ("always", "mixed", str(tmp_path))
    assert not (tmp_path / ".flowray").exists()


def test_what_means_something_to_systemd_is_quoted() -> None:
    command = parsed(unit_of("x", ["up", "my team.yaml", "--set", 'a="%h $HOME\\"']))["Service"]["ExecStart"]
    assert command.endswith(r'''up "my team.yaml" --set "a=\"%%h $$HOME\\\""''')
