"""Versions of the router in a running team: a bad one is caught, a better one comes into force and outlives its
coordinator, and meanwhile every task is done."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest

import flowray as fr
from flowray.core.model import Outcome
from flowray.errors import RouterRefused
from flowray.routing.versions import version_of
from flowray.testing import make_outcomes, replay_specs, replay_tasks

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0
TRAINED_S = 200.0  # for a trainer of the lowest priority, on a machine that has other work
SHIPPED = Path(__file__).parents[2] / "models" / "router" / "v1"
# Shares as large as a short test needs; what the defaults keep to is tested without Ray.
QUICK = {
    "shadow_share": 0.6, "shadow_least": 100, "shadow_most": 2_000, "canary_share": 0.3, "canary_least": 20,
    "canary_most": 2_000, "watch": 100_000,
}  # fmt: skip


def with_the_wrong_agents(directory: Path, out: Path) -> Path:
    """The same past, in which each agent did what another one did."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    for name in ("tasks.parquet", "agents.parquet"):
        (out / name).write_bytes((directory / name).read_bytes())
    rows = pq.read_table(directory / "outcomes.parquet").to_pylist()
    names = sorted({row["agent_id"] for row in rows})
    others = dict(zip(names, names[1:] + names[:1], strict=True))
    for row in rows:
        row["agent_id"] = others[row["agent_id"]]
    pq.write_table(pa.Table.from_pylist(rows), out / "outcomes.parquet")
    return out


def test_versions_come_and_go_by_themselves(start_runtime: Callable[..., fr.Runtime], tmp_path: Path):
    past = make_outcomes(tmp_path / "made", tasks=300, agents=5)
    wrong = with_the_wrong_agents(past, tmp_path / "wrong")
    tasks = cycle(replay_tasks(past))
    with start_runtime(
        "versions",
        core__routing={"enabled": True, "within_s": 10.0, "sampled": 1.0},
        router={"artifact": str(SHIPPED), "history": str(wrong), "rollout": QUICK},
        tiers__secondary__agents_per_actor=5,
    ) as rt:
        set_up(rt, past)
        submitted = 0

        def work(count: int = 200) -> Counter[str]:
            nonlocal submitted
            outcomes = work_on(rt, tasks, count)
            assert all(outcome.state.value == "succeeded" for outcome in outcomes), "no trial costs a task"
            submitted += count
            receipts = [outcome.choices[0].receipt for outcome in outcomes]
            return Counter(receipt.version.partition("+")[0] for receipt in receipts if receipt is not None)

        def work_until(arrow: str, *never: str) -> None:
            for _ in range(60):
                work()
                arrows = [record.arrow for record in rt.router_versions().records]
                assert not set(never) & set(arrows), rt.router_versions().records[-1].why
                if arrow in arrows:
                    return
            raise AssertionError(rt.router_versions().records)

        good, bad = version_of(SHIPPED, past), version_of(SHIPPED, wrong)
        assert set(work()) == {bad}

        # The better one: it knows who did what.
        assert rt.offer_router(SHIPPED, past) == good
        assert rt.status().router_trial == f"shadow: {good}"
        with pytest.raises(RouterRefused, match="one at a time"):
            rt.offer_router(SHIPPED, "")
        work_until("promoted", "rejected")
        assert good in work()

        # Its coordinator dies: the next one goes on with the promoted version, still watched.
        before = rt.status()
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: rt.status().epoch > before.epoch and rt.status().router)
        assert rt.status().router_trial == f"watched: {bad}"
        versions = work()
        assert versions[good] > versions[bad] > 0

        records = rt.router_versions().records
        assert [each.arrow for each in records if each.arrow != "noted"] == [
            "configured", "offered", "passed", "promoted",
        ]  # fmt: skip
        assert records[-1].live.version == good


def test_a_bad_one_is_caught_while_tasks_go_on(start_runtime: Callable[..., fr.Runtime], tmp_path: Path):
    past = make_outcomes(tmp_path / "made", tasks=300, agents=5)
    wrong = with_the_wrong_agents(past, tmp_path / "wrong")
    tasks = cycle(replay_tasks(past))
    with start_runtime(
        "caught",
        core__routing={"enabled": True, "within_s": 10.0, "sampled": 1.0},
        router={"artifact": str(SHIPPED), "history": str(past), "rollout": {**QUICK, "canary_share": 0.01}},
        tiers__secondary__agents_per_actor=5,
    ) as rt:
        set_up(rt, past)
        bad = rt.offer_router(SHIPPED, wrong)
        touched = done = 0
        while rt.status().router_trial:
            assert done < 20_000, rt.router_versions().records
            outcomes = work_on(rt, tasks)
            assert all(outcome.state.value == "succeeded" for outcome in outcomes)
            receipts = [outcome.choices[0].receipt for outcome in outcomes]
            touched += sum(receipt is not None and receipt.version.startswith(bad) for receipt in receipts)
            done += len(outcomes)
        last = rt.router_versions().records[-1]
        assert last.arrow == "rejected", last.why
        assert last.live.version == version_of(SHIPPED, past)
        assert touched <= 0.01 * done


def test_a_version_made_of_the_runtimes_own_outcomes_is_tried(start_runtime: Callable[..., fr.Runtime], tmp_path: Path):
    past = make_outcomes(tmp_path / "made", tasks=300, agents=5)
    wrong = with_the_wrong_agents(past, tmp_path / "wrong")
    tasks = cycle(replay_tasks(past))
    retrain = {"enabled": True, "outcomes": 600, "least": 600, "epochs": 1, "deadline_s": 60.0, "held_out": 0.2}
    with start_runtime(
        "retrained",
        core__routing={"enabled": True, "within_s": 10.0, "sampled": 1.0, "explore": 0.3},
        router={"artifact": str(SHIPPED), "history": str(wrong), "rollout": QUICK, "retrain": retrain},
        tiers__secondary__agents_per_actor=5,
    ) as rt:
        set_up(rt, past)
        for _ in range(6):
            work_on(rt, tasks)
        until(lambda: any(record.arrow == "offered" for record in rt.router_versions().records), TRAINED_S)
        offered = rt.router_versions().records[-1]
        assert offered.other is not None
        history = Path(offered.other.history)  # the weights may be the old ones: they are kept where nothing is better
        assert history.parent.parent.name == "routers" and (history / "outcomes.parquet").is_file()
        assert offered.other.version == version_of(offered.other.artifact, history)


def set_up(rt: fr.Runtime, past: Path) -> None:
    """A class of agents for each recorded one, and the router in force."""
    for spec in replay_specs(past, capability="answer"):
        rt.agents.add(**spec.arguments)
    rt.wait_ready(timeout_s=WAIT_S)
    until(lambda: rt.status().router)


def work_on(rt: fr.Runtime, tasks: Iterator[tuple[str, dict[str, str]]], count: int = 200) -> list[Outcome]:
    """Have so many of the tasks done."""
    some = islice(tasks, count)
    requests = [{"prompt": text, "labels": labels, "needs": {"answer"}} for text, labels in some]
    return rt.submit_many(requests).outcomes(timeout_s=WAIT_S)


def until(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
