"""No-op tasks through flowray: embedded Ray, a coordinator with its journal on disk, agents, this driver."""

from __future__ import annotations

import os
import queue
import time
from typing import Any, Protocol

import flowray as fr
from bench.measure import percentile
from bench.workers.common import Moment, between, main
from flowray.core.states import TaskState

_SETTLE_S = 1.0  # processes go on freeing and loading for a moment after they are ready


def work(settings: dict[str, Any]) -> dict[str, float]:
    with fr.Runtime.start(overrides={"ray.agent_output": False}) as rt:
        rt.agents.add("bench.workers.noop:Noop", count=settings["agents"])
        rt.wait_ready(timeout_s=180, agents=settings["agents"])
        status = rt.status()
        agents = [agent.pid for agent in status.agents]
        time.sleep(_SETTLE_S)
        groups = {"coordinator": [status.pid], "driver": [os.getpid()], "agents": agents}
        load = Load(rt, settings["in_flight"])
        load.run_until(time.perf_counter() + settings["warm_s"])
        start = Moment.now(load.done, groups)
        load.run_until(time.perf_counter() + settings["measure_s"])
        figures = between(start, Moment.now(load.done, groups))
        load.drain()
        time.sleep(_SETTLE_S)
        single = one_at_a_time(rt, settings["single"])
        figures["one_task_p50_ms"] = percentile(single, 0.50) * 1e3
        figures["one_task_p99_ms"] = percentile(single, 0.99) * 1e3
        submitted = load.submitted + len(single) + settings["single"] // 10
        seen = load.succeeded + len(single) + settings["single"] // 10  # each of the latter gave its result
        recorded = rt.status().ended.get(TaskState.SUCCEEDED.value, 0)
        figures["durable_tasks_lost"] = submitted - min(seen, recorded)
    return figures


class Texts(Protocol):
    """Prompts, as many as are asked for."""

    def take(self, count: int) -> list[str]: ...


class Load:
    """Keeps a number of tasks in flight: whatever has ended is replaced at once, by as large a batch as that makes."""

    def __init__(self, rt: fr.Runtime, in_flight: int, needs: str = "noop", texts: Texts | None = None) -> None:
        """`texts` gives the prompts; left out, they are all one letter."""
        self._rt, self._in_flight, self._needs, self._texts = rt, in_flight, needs, texts
        self._ended: queue.SimpleQueue[fr.Handle] = queue.SimpleQueue()
        self.submitted = self.done = self.succeeded = 0

    def run_until(self, stop_at: float) -> None:
        while time.perf_counter() < stop_at:
            room = self._in_flight - (self.submitted - self.done)
            if room:
                self.submitted += room
                prompts = ["x"] * room if self._texts is None else self._texts.take(room)
                for handle in self._rt.map(prompts, needs={self._needs}):
                    handle.add_done_callback(self._ended.put)
            self._take()

    def drain(self) -> None:
        """Wait for everything handed in; what is not there after a minute counts as lost."""
        while self.done < self.submitted:
            try:
                self._take(timeout_s=60.0)
            except queue.Empty:
                return

    def _take(self, timeout_s: float | None = None) -> None:
        handle = self._ended.get(timeout=timeout_s)
        while True:
            self.done += 1
            self.succeeded += handle.state == TaskState.SUCCEEDED.value
            try:
                handle = self._ended.get_nowait()
            except queue.Empty:
                return


def one_at_a_time(rt: fr.Runtime, count: int) -> list[float]:
    """Seconds from submit to result, with nothing else in flight; a tenth more before, to warm up."""
    found = []
    for number in range(count + count // 10):
        at = time.perf_counter()
        rt.submit("x", needs={"noop"}).result(timeout_s=60)
        if number >= count // 10:
            found.append(time.perf_counter() - at)
    return found


if __name__ == "__main__":
    main(work)
