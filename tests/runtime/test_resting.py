"""The main thread of an idle process rests, and gets up when it is called."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_agents import shout

import flowray as fr

# Its main thread does what that of a Ray worker does: it looks every 10 ms, in C, for signals.
_SCRIPT = """
import asyncio, threading, time
from flowray.runtime.resting import main_thread

looks = 0
main_thread.prepare()
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
done = threading.Event()

def story():
    def in_a_moment(length_s):
        before = looks
        time.sleep(length_s)
        return looks - before

    busy = in_a_moment(0.5)
    loop.call_soon_threadsafe(main_thread.rest, loop)
    time.sleep(0.1)
    resting = in_a_moment(2.5)
    loop.call_soon_threadsafe(main_thread.wake)
    time.sleep(0.1)
    print(busy, resting, in_a_moment(0.5), flush=True)
    done.set()

threading.Thread(target=story).start()
while not done.is_set():
    time.sleep(0.01)
    looks += 1
"""


def test_it_looks_up_once_a_second_while_it_rests_and_as_ever_before_and_after() -> None:
    run = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    busy, resting, woken = map(int, run.stdout.split())
    assert busy >= 5, "it worked before"
    assert 1 <= resting <= 15, "two short looks in two and a half seconds, of a few rounds each"
    assert woken >= 5, "and it works afterwards"


def test_a_thread_that_nobody_prepared_is_left_alone() -> None:
    script = _SCRIPT.replace("main_thread.prepare()", "")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert int(run.stdout.split()[1]) > 25


def _switches(pid: int) -> int:
    """Of its main thread, so far."""
    lines = Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


@pytest.mark.ray
@pytest.mark.slow
def test_an_idle_agent_costs_its_process_little_and_works_at_once(
    start_runtime: Callable[..., fr.Runtime], eventually: Callable[..., Any]
) -> None:
    with start_runtime("resting") as runtime:
        runtime.agents.add(shout, capabilities={"shout"})
        runtime.wait_ready(timeout_s=60)
        (agent,) = runtime.status().agents

        def rests() -> bool:
            before = _switches(agent.pid)
            time.sleep(2.0)
            return _switches(agent.pid) - before < 60  # two hundred and more while it looks every 10 ms

        eventually(rests, "its main thread rests")
        assert runtime.submit("still there", needs={"shout"}).result(timeout_s=10) == "STILL THERE!"
