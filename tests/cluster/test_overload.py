"""Ten times more than the runtime can do: memory stays within its bounds, what is refused is refused with a reason and
a time to try again, and whatever was accepted gets one outcome.

Short by default; --chaos-full for half a minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from checker import check, read_history
from overload_work import SLOTS

from flowray.testing.cluster import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
HERE = Path(__file__).parent

AGENTS, WAIT_S = 2, 0.04
CAN_DO_PER_S = AGENTS * SLOTS / WAIT_S  # 200, at most
CLIENTS, THREADS = 2, 8
TIMES = 10
BYTES = 16_384  # of a payload
MAX_TASKS = 400
MAX_BYTES = 4 << 20  # which is reached first: by 250 tasks
# A task that is open is in the coordinator's core, its prompt and payload once (`open_bytes` counts that), and may be
# on its way in several forms: a message received, the journal's row, a message to an agent. So many forms at once,
# times what may be open, and besides that the windows of the links that the load goes over (2 clients: `Limits`).
FORMS = 5
WINDOWS_BYTES = CLIENTS * (16 << 20)
BOUND_MB = (FORMS * MAX_BYTES + WINDOWS_BYTES) >> 20
SETTLE_S = 2.0


@pytest.mark.timeout(240)
def test_ten_times_too_much_for_a_while(
    request: pytest.FixtureRequest, tmp_path: Path, say: Callable[[str], None]
) -> None:
    for_s = 30.0 if request.config.getoption("--chaos-full") else 6.0
    overrides = {
        "name": f"overload-{tmp_path.name[-8:]}",
        "core.admission.max_open_tasks": MAX_TASKS,
        "core.admission.max_open_bytes": MAX_BYTES,
        "tiers.secondary.agents": AGENTS,
        "ray.num_cpus": 2,
        "ray.object_store_mb": 100,
    }
    settings = {"directory": str(tmp_path), "overrides": overrides, "agents": AGENTS}
    home = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(HERE)}
    (tmp_path / "home").mkdir()
    programs = {}

    def start(name: str, file: str, settings: dict[str, object]) -> None:
        with (tmp_path / f"{name}.log").open("wb") as log:
            command = [sys.executable, str(HERE / file), json.dumps(settings)]
            programs[name] = subprocess.Popen(command, stdout=log, stderr=log, env=home)

    def alive() -> None:
        for name, program in programs.items():
            assert program.poll() in (None, 0), (tmp_path / f"{name}.log").read_text()

    try:
        start("runtime", "overload_work.py", settings)
        wait_until(lambda: alive() or (tmp_path / "ready").exists(), 90, "the runtime is ready")
        watched = {n: psutil.Process(p) for n, p in json.loads((tmp_path / "ready").read_text()).items()}
        for number in range(CLIENTS):
            name = f"client-{number}"
            load = {
                "per_s": TIMES * CAN_DO_PER_S / CLIENTS,
                "threads": THREADS,
                "for_s": for_s,
                "wait_s": WAIT_S,
                "bytes": BYTES,
            }
            client = {"directory": str(tmp_path), "name": name, "runtime": overrides["name"], **load}
            start(name, "overload_client.py", client)
            watched[name] = psutil.Process(programs[name].pid)
        clients = [program for name, program in programs.items() if name != "runtime"]
        wait_until(
            lambda: alive() or all((tmp_path / f"client-{n}.jsonl").exists() for n in range(CLIENTS)),
            60,
            "the load is on",
        )
        time.sleep(SETTLE_S)  # what every process needs before it does anything: modules, buffers
        before = {name: resident(process) for name, process in watched.items()}
        most = dict(before)
        while any(client.poll() is None for client in clients):
            alive()
            most = {name: max(mb, resident(watched[name])) for name, mb in most.items()}
            time.sleep(0.05)
        alive()
        (tmp_path / "end").touch()
        assert programs["runtime"].wait(60) == 0, (tmp_path / "runtime.log").read_text()
    finally:
        for program in programs.values():
            program.kill()
            program.wait()

    counts = [json.loads((tmp_path / f"client-{number}.json").read_text()) for number in range(CLIENTS)]
    verdict = check(read_history(*tmp_path.glob("client-*.jsonl")))
    say(f"\noverload: {counts}\n{verdict}\nresident MB, with the load on and at most: ")
    say(f"{ {name: (before[name], most[name]) for name in most} }; bound {BOUND_MB}")
    assert verdict.good, verdict
    assert verdict.states == {"succeeded": sum(one["accepted"] for one in counts)}
    refused = sum(one["refused"] for one in counts)
    assert refused > verdict.accepted, "it was too much"
    assert not any(one["without a time to try again"] for one in counts)
    for name, mb in most.items():
        assert mb - before[name] <= BOUND_MB, (name, before[name], mb)


def resident(process: psutil.Process) -> int:
    """MB; 0 when it has ended."""
    try:
        return int(process.memory_info().rss) >> 20
    except psutil.NoSuchProcess:
        return 0
