"""Environments of peers, with a pip that installs nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.environments import PINS, python_of, versions_of
from bench.measure import SideAbsent

PINNED = "# what a peer needs\npeer==1.2\npeer-core==1.3\ngrpcio==1.70.0\n"


class Machine:
    """Stands in for venv and pip: does what they do to the file system, and fails when it is told to."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.commands: list[list[str]] = []
        self.fails = fails

    def run(self, command: Sequence[str]) -> None:
        self.commands.append(list(command))
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
        elif self.fails is not None:
            raise self.fails


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    directory = tmp_path / "peers"
    directory.mkdir()
    (directory / "peer.txt").write_text(PINNED)
    return directory


def test_an_environment_is_made_once_from_its_pins_alone(tmp_path: Path, pins: Path) -> None:
    machine = Machine()
    first = python_of("peer", pins=pins, made=tmp_path / "made", run=machine.run)
    again = python_of("peer", pins=pins, made=tmp_path / "made", run=machine.run)
    assert first == again
    assert first.exists()
    made, installed = machine.commands
    assert made[-1] == str(first.parents[1])
    assert installed[0] == str(first)
    assert {"--no-deps", "--requirement", str(pins / "peer.txt")} <= set(installed)


def test_other_pins_make_another_environment(tmp_path: Path, pins: Path) -> None:
    machine = Machine()
    before = python_of("peer", pins=pins, made=tmp_path / "made", run=machine.run)
    (pins / "peer.txt").write_text(PINNED.replace("1.2", "1.4"))
    assert python_of("peer", pins=pins, made=tmp_path / "made", run=machine.run) != before
    assert before.exists()


def test_one_that_was_interrupted_is_made_again(tmp_path: Path, pins: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        python_of("peer", pins=pins, made=tmp_path / "made", run=Machine(KeyboardInterrupt()).run)
    machine = Machine()
    assert python_of("peer", pins=pins, made=tmp_path / "made", run=machine.run).exists()
    assert len(machine.commands) == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            subprocess.CalledProcessError(
                1, "pip", stderr="WARNING: x\nERROR: No matching distribution for peer==1.2\n"
            ),
            "could not be made: ERROR: No matching distribution for peer==1.2$",
        ),
        (subprocess.CalledProcessError(3, "pip", stderr=""), "could not be made: ended with 3$"),
        (subprocess.TimeoutExpired("pip", 900), "timed out after 900 seconds"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_cannot_be_made_is_a_reason_and_leaves_nothing(
    tmp_path: Path, pins: Path, error: Exception, reason: str
) -> None:
    with pytest.raises(SideAbsent, match=reason):
        python_of("peer", pins=pins, made=tmp_path / "made", run=Machine(error).run)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["peer.lock"]


def test_versions_are_those_pinned_and_say_whose_they_are(pins: Path) -> None:
    found = versions_of("peer", ["peer", "grpcio", "missing"], pins=pins)
    assert found == {"peer": "1.2", "peer's grpcio": "1.70.0"}


@pytest.mark.parametrize("path", sorted(PINS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_package_of_a_peer_is_pinned_exactly(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(len(line.split("==")) == 2 and line.split("==")[1] for line in lines)
