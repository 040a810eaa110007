"""Further processes of one side."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from bench.workers.children import children


@pytest.mark.slow
def test_children_are_ready_inside_and_gone_after(tmp_path: Path) -> None:
    far = [{"socket": str(tmp_path / f"s{number}"), "experiments": ""} for number in range(2)]
    with children("grpc_echo", far) as started:
        assert all(child.poll() is None for child in started)
        assert all((tmp_path / f"s{number}").exists() for number in range(2))
    assert [child.returncode for child in started] == [0, 0]


@pytest.mark.slow
def test_a_child_that_does_not_start_is_said_and_the_others_are_ended(tmp_path: Path) -> None:
    far = [
        {"socket": str(tmp_path / "s"), "experiments": ""},
        {"socket": str(tmp_path / "no" / "such"), "experiments": ""},
    ]
    with pytest.raises(RuntimeError, match="grpc_echo did not start: it ended with 1"), children("grpc_echo", far):
        pass
    assert not [p for p in psutil.Process().children() if "grpc_echo" in " ".join(p.cmdline())]
