"""The same driver script run directly, as a Ray job and in a notebook's kernel; and the notebooks themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from flowray.testing.cluster import NamespaceCluster, cluster_missing

pytestmark = [pytest.mark.ray, pytest.mark.slow]
HERE = Path(__file__).parent
SCRIPT = HERE / "driver_script.py"
NOTEBOOKS = sorted((HERE.parent.parent / "notebooks").glob("*.ipynb"))
EXPECTED = """\
5 the
2 dog
2 fox
2 is
ValueError: ValueError: cannot do 'magic'
4 agents, {'dead': 1, 'succeeded': 4}
"""


@pytest.fixture(autouse=True)
def own_ray(ray_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs here starts a Ray of its own, whatever this process has joined."""
    for name in [name for name in os.environ if name.startswith("RAY_") and name != "RAY_AUTH_TOKEN_PATH"]:
        monkeypatch.delenv(name)


def test_run_directly() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == EXPECTED


def test_run_as_a_ray_job() -> None:
    """`ray job submit` to a cluster that `ray start --head` has started, in namespaces that nothing else shares."""
    missing = cluster_missing()
    if missing:
        pytest.skip(missing)
    with NamespaceCluster(nodes=1, cpus=4, dashboard=True) as cluster:
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", "http://127.0.0.1:8265"]
        job = cluster.run(0, [*submit, "--", sys.executable, str(SCRIPT)], name="job")
        output = job.check(200)
    assert EXPECTED in output, output
    assert "succeeded" in output


def test_run_in_a_notebook_kernel(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(SCRIPT.read_text())]
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    streams = [o for o in notebook.cells[0].outputs if o.output_type == "stream" and o.name == "stdout"]
    assert "".join(stream.text for stream in streams) == EXPECTED


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type in ("display_data", "execute_result")
    ]
    assert any("text/html" in output.data for output in shown), "views show themselves as HTML"
