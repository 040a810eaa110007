"""Versions on trial while Ray Serve answers: the better one comes into force, whatever happens to replicas and the
coordinator meanwhile, and no task fails for it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_rollout_on_ray import QUICK, SHIPPED, set_up, until, with_the_wrong_agents, work_on

import flowray as fr
from flowray.errors import RouterRefused, WaitTimeout
from flowray.routing.config import ServingConfig
from flowray.routing.versions import version_of
from flowray.testing import make_outcomes, replay_tasks

if TYPE_CHECKING:
    from flowray.runtime.serving import ServedRouter

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),  # Serve's own, at its import
]


@pytest.fixture
def served() -> Iterator[Callable[[Path], list[int]]]:
    """Deploys the shipped router with this past; gives the processes that answer."""
    from flowray.runtime.serving import deploy_router, undeploy

    def deploy(past: Path) -> list[int]:
        config = ServingConfig(
            router=str(SHIPPED), history=str(past), precision="float32", max_replicas=1, num_cpus=0.01
        )
        return [one.pid for one in deploy_router(config).statuses()]

    yield deploy
    undeploy()


def held_by(served: ServedRouter) -> set[tuple[str, str]]:
    """The versions in force and beside it; nothing while a replica takes them in, for Serve asks none then."""
    try:
        return {(one.version, one.other) for one in served.statuses()}
    except WaitTimeout:
        return set()


def test_a_better_version_comes_into_force(
    start_runtime: Callable[..., fr.Runtime], served: Callable[[Path], list[int]], tmp_path: Path
) -> None:
    from flowray.runtime.serving import served_router

    past = make_outcomes(tmp_path / "made", tasks=300, agents=5)
    wrong = with_the_wrong_agents(past, tmp_path / "wrong")
    tasks = cycle(replay_tasks(past))
    good, bad = version_of(SHIPPED, past), version_of(SHIPPED, wrong)
    with start_runtime(
        "tried",
        core__routing={"enabled": True, "within_s": 10.0, "sampled": 1.0},
        router={
            "artifact": str(SHIPPED), "history": str(wrong), "through": "serve", "rollout": QUICK,
            "asking": {"deadline_s": 2.0},
        },
        tiers__secondary__agents_per_actor=5,
    ) as rt:  # fmt: skip
        set_up(rt, past)

        def work(count: int = 200) -> Counter[tuple[str, str]]:
            """(who answered, the version) of so many tasks, all of which are done."""
            outcomes = work_on(rt, tasks, count)
            assert all(outcome.state.value == "succeeded" for outcome in outcomes), "no trial costs a task"
            receipts = [outcome.choices[0].receipt for outcome in outcomes]
            return Counter((each.path, each.version.partition("+")[0]) for each in receipts if each is not None)

        def until_arrow(arrow: str, *never: str) -> None:
            for _ in range(80):
                work()
                records = rt.router_versions().records
                assert not {record.arrow for record in records} & set(never), records[-1].why
                if arrow in {record.arrow for record in records}:
                    return
            raise AssertionError(rt.router_versions().records)

        with pytest.raises(RouterRefused, match="no router 'flowray-router' is served"):
            rt.offer_router(SHIPPED, past)
        (pid,) = served(wrong)
        until(lambda: work(20)[("serve", bad)] == 20)

        assert rt.offer_router(SHIPPED, past) == good
        (held,) = served_router().statuses()
        assert (held.version, held.other) == (bad, good)
        assert set(work(60)) == {("serve", bad)}, "in shadow it is not heard"

        os.kill(pid, signal.SIGKILL)
        until(lambda: {path for path, _ in work(20)} == {"serve"})
        # What comes after it holds both, too, whichever is in force by then: the trial has gone on without Serve.
        until(lambda: held_by(served_router()) & {(bad, good), (good, bad)})

        until_arrow("promoted", "rejected")
        until(lambda: held_by(served_router()) == {(good, bad)})
        until(lambda: {path for path, _ in work(20)} == {"serve"})
        counts = work()
        assert counts[("serve", good)] > counts[("serve", bad)] > 0

        before = rt.status()
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: rt.status().epoch > before.epoch and rt.status().router)
        assert rt.status().router_trial == f"watched: {bad}"
        until(lambda: work(20)[("serve", good)] > 10)
        until(lambda: held_by(served_router()) == {(good, bad)})
        arrows = [record.arrow for record in rt.router_versions().records if record.arrow != "noted"]
        assert arrows == ["configured", "offered", "passed", "promoted"]
