"""A runtime that asks Ray Serve, while Serve comes, changes its version, hangs, dies and goes: no task is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from polling import eventually
from routing.routers import trained
from routing.sets import two_trades

import flowray as fr
from flowray.core.model import Outcome
from flowray.core.states import TaskState
from flowray.routing import estimator
from flowray.routing.config import ServingConfig
from flowray.routing.versions import version_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),  # Serve's own, at its import
]
WAIT_S = 60.0
RATE_PER_S = 200
BEAT_S = 0.01
WITHIN_S = 1.0  # a busy machine must not look like a slow Serve


@fr.agent(capabilities={"answer"}, num_cpus=0.001)
class Worker:
    def run(self, task: fr.Task) -> str:
        return task.prompt


@dataclass(frozen=True)
class Places:
    one: Path
    two: Path  # the same weights, and another version
    history: Path

    def config(self, router: Path) -> ServingConfig:
        return ServingConfig(
            router=str(router),
            history=str(self.history),
            precision="float32",
            max_replicas=1,
            num_cpus=0.01,
            downscale_delay_s=3600.0,
        )

    def version(self, router: Path) -> str:
        return version_of(router, self.history)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    directory = tmp_path_factory.mktemp("routers")
    estimator.save(directory / "one", trained())
    estimator.save(directory / "two", trained(), note="the second")
    return Places(directory / "one", directory / "two", two_trades(directory / "trades"))


@pytest.fixture(scope="module")
def asking(start_runtime: Callable[..., fr.Runtime]) -> Iterator[fr.Runtime]:
    """It has no router of its own, and nothing is served yet."""
    with start_runtime(
        "asking",
        core__routing={"enabled": True, "within_s": WITHIN_S, "sampled": 1.0},
        router={"through": "serve", "asking": {"breaker": {"wait_s": 0.2, "longest_wait_s": 0.4}}},
        seed=3,
    ) as rt:
        for name in ("counter", "poet", "newcomer"):
            rt.agents.add(Worker, name=name, count=1)
        rt.wait_ready(timeout_s=WAIT_S)
        yield rt


@pytest.fixture(scope="module", autouse=True)
def nothing_left(ray_address: str) -> Iterator[None]:
    yield
    from flowray.runtime.serving import undeploy

    undeploy()


class Load:
    """Tasks by the clock, in a thread; all must succeed."""

    def __init__(self, rt: fr.Runtime) -> None:
        self._rt = rt
        self._handles: list[fr.Handle] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(WAIT_S)
        self.outcomes = [handle.outcome(timeout_s=WAIT_S) for handle in self._handles]
        assert {outcome.state for outcome in self.outcomes} == {TaskState.SUCCEEDED}

    def _run(self) -> None:
        began_at, words = time.monotonic(), ("add multiply number", "rhyme verse sonnet")
        while not self._end.wait(BEAT_S):
            due = int((time.monotonic() - began_at) * RATE_PER_S) - len(self._handles)
            texts = [f"{words[n % 2]} {n}" for n in range(len(self._handles), len(self._handles) + due)]
            self._handles += self._rt.map(texts, needs={"answer"}) if texts else []

    def until(self, wanted: str) -> None:
        """Until a task that is handed in from now on is decided this way."""
        eventually(lambda: path_of(self._latest()) == wanted, timeout_s=WAIT_S)

    def _latest(self) -> Outcome:
        handed_in = len(self._handles)
        eventually(lambda: len(self._handles) > handed_in, timeout_s=WAIT_S)
        return self._handles[-1].outcome(timeout_s=WAIT_S)


def path_of(outcome: Outcome) -> str:
    receipt = outcome.choices[0].receipt
    return "nobody" if receipt is None else receipt.path


def versions_of(outcomes: list[Outcome], path: str) -> list[str]:
    """Without what was learned, in the order in which they first occur."""
    receipts = [outcome.choices[0].receipt for outcome in outcomes]
    found = [receipt.version.partition("+")[0] for receipt in receipts if receipt is not None and receipt.path == path]
    return list(dict.fromkeys(found))


def pids() -> list[int]:
    from flowray.runtime.serving import served_router

    return [one.pid for one in served_router().statuses()]


def test_serve_comes_after_the_runtime(asking: fr.Runtime, places: Places) -> None:
    from flowray.runtime.serving import deploy_router

    assert asking.status().router == ""
    with Load(asking) as load:
        load.until("nobody")
        deploy_router(places.config(places.one))
        load.until("serve")
    first, last = load.outcomes[0], load.outcomes[-1]
    assert first.choices[0].unrouted == "failed"
    assert "no router 'flowray-router' is served" in first.choices[0].detail
    assert versions_of(load.outcomes, "serve") == [places.version(places.one)]
    assert [estimate.latency_s is None for estimate in last.choices[0].receipt.estimates].count(True) <= 1
    assert asking.status().router.startswith(places.version(places.one))


def test_a_killed_replica(asking: fr.Runtime, places: Places) -> None:
    """The coordinator has a copy by now, though nobody gave it one."""
    with Load(asking) as load:
        load.until("serve")
        time.sleep(3.0)  # a version that has stayed is loaded; nothing shows when
        os.kill(pids()[0], signal.SIGKILL)
        load.until("local")
        load.until("serve")
    assert versions_of(load.outcomes, "local") == [places.version(places.one)]
    told = [outcome.choices[0].receipt for outcome in load.outcomes if path_of(outcome) == "local"]
    assert all(receipt.detail.startswith("Serve: ") for receipt in told)


def test_a_new_version(asking: fr.Runtime, places: Places) -> None:
    from flowray.runtime.serving import deploy_router

    with Load(asking) as load:
        load.until("serve")
        deploy_router(places.config(places.two))
        load.until("serve")
        time.sleep(3.0)
    assert versions_of(load.outcomes, "serve") == [places.version(places.one), places.version(places.two)]
    assert not [outcome for outcome in load.outcomes if path_of(outcome) == "nobody"]


def test_a_hung_replica(asking: fr.Runtime, places: Places) -> None:
    with Load(asking) as load:
        load.until("serve")
        (hung,) = pids()
        try:
            os.kill(hung, signal.SIGSTOP)
            load.until("local")
        finally:
            os.kill(hung, signal.SIGCONT)
        load.until("serve")
    assert versions_of(load.outcomes, "local") == [places.version(places.two)], "the copy has followed"
    assert asking.status().router_failed == ""


def test_serve_is_shut_down_and_comes_again(asking: fr.Runtime, places: Places) -> None:
    from flowray.runtime.serving import deploy_router, undeploy

    with Load(asking) as load:
        load.until("serve")
        undeploy()
        load.until("local")
        deploy_router(places.config(places.two))
        load.until("serve")
    assert not [outcome for outcome in load.outcomes if path_of(outcome) == "nobody"]


def test_why_it_was_not_serve_is_told(asking: fr.Runtime) -> None:
    from flowray.runtime.serving import undeploy

    undeploy()

    def told() -> Any:
        handle = asking.submit("add numbers", needs={"answer"})
        handle.result(timeout_s=WAIT_S)
        return handle.explain()

    eventually(lambda: "local (Serve: absent, no router" in told(), timeout_s=WAIT_S)
