"""Training on from what is in force: what comes of it, and that inputs, time and space are respected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from flowray.core.retraining import RetrainConfig
from flowray.routing import artifacts, data, estimator, live, retraining
from flowray.routing.queries import Query
from flowray.routing.retraining import CARD, NothingLearned, retrain
from flowray.routing.versions import version_of

from .routers import trained
from .sets import two_trades

CONFIG = RetrainConfig(least=50, newest=400, held_out=0.15, epochs=2)
OTHERS = {"counter": "poet", "poet": "counter", "sage": "fool", "fool": "sage"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    estimator.save(directory, trained())
    return directory


def renamed(source: Path, out: Path, names: dict[str, str]) -> Path:
    out.mkdir()
    for file in source.glob("*.parquet"):
        table = pq.read_table(file)
        if file.name == "outcomes.parquet":
            ids = [names.get(one, one) for one in table["agent_id"].to_pylist()]
            table = table.set_column(table.column_names.index("agent_id"), "agent_id", pa.array(ids))
        pq.write_table(table, out / file.name)
    return out


def receipts(out: Path, n_tasks: int = 400, seed: int = 7, **names: str) -> Path:
    """As a runtime exports them: one agent tried each task, names are those of classes, and there are times."""
    whole = two_trades(out.with_name(f"{out.name}-whole"), n_tasks=n_tasks, seed=seed)
    rng = np.random.default_rng(seed + 1_000)  # not that of the tasks, or who is chosen depends on their kinds
    rows = pq.read_table(whole / "outcomes.parquet").to_pylist()
    tasks = pq.read_table(whole / "tasks.parquet").to_pylist()
    chosen = {task["prompt_id"]: rng.integers(4) for task in tasks}
    agents = sorted({row["agent_id"] for row in rows})
    kept = [
        {
            "prompt_id": f"r-{row['prompt_id']}",
            "agent_id": names.get(row["agent_id"], row["agent_id"]),
            "success": row["success"],
            "latency_s": row["latency_s"],
            "cost_usd": row["cost_usd"],
            "at_utc": 1e9 + int(row["prompt_id"][1:]),
        }
        for row in rows
        if agents[chosen[row["prompt_id"]]] == row["agent_id"]
    ]
    out.mkdir()
    pq.write_table(pa.Table.from_pylist(kept), out / "outcomes.parquet")
    asked = [{"prompt_id": f"r-{t['prompt_id']}", "text": t["text"], "split": "train"} for t in tasks]
    pq.write_table(pa.Table.from_pylist(asked), out / "tasks.parquet")
    pq.write_table(pa.table({"agent_id": sorted({row["agent_id"] for row in kept})}), out / "agents.parquet")
    return out


def test_a_past_that_is_no_more_true_is_left_behind(base, tmp_path):
    wrong = renamed(two_trades(tmp_path / "truth"), tmp_path / "wrong", OTHERS)
    found = retrain(base, wrong, receipts(tmp_path / "new"), tmp_path / "out", CONFIG)
    card = found.card
    assert card["history"]["chosen"] == "receipts"
    surprise = card["surprise_on_test"]
    assert surprise["with_history"] < surprise["in_force"]
    assert card["tasks"] == {"new": 400, "all": 400, "held_out": 60}
    assert card["outcomes"] == {"new": 400, "all": 400}
    router = live.load(found.artifact, found.history)
    (answer,) = router.estimate(["t"], [Query("add multiply number total fraction add", ("counter", "poet"))])
    assert answer[0].success > answer[1].success + 0.1, "it learned who counts"


def test_a_past_that_holds_is_kept_beside_the_new(base, tmp_path):
    history = two_trades(tmp_path / "truth", n_tasks=60, drop=())
    found = retrain(base, history, receipts(tmp_path / "new", n_tasks=120), tmp_path / "out", CONFIG)
    made = data.load(found.history)
    assert set(made.splits) == {"train"}
    assert made.timed
    if found.card["history"]["chosen"] == "joined":
        assert [p.startswith("r-") for p in made.prompt_ids] == sorted(p.startswith("r-") for p in made.prompt_ids)
        assert found.card["tasks"]["all"] > found.card["tasks"]["new"]


def test_joined_and_dated_old_tasks_come_first(tmp_path):
    old = retraining._read(two_trades(tmp_path / "old", n_tasks=30))
    new = retraining._as_in(old, retraining._newest(retraining._read(receipts(tmp_path / "new", n_tasks=40)), 20))
    both = retraining._written(retraining._all_for_training(retraining._joined(old, new)), tmp_path / "both")
    assert len(both) == 15 + 20, "of the old ones only those that a history is read of"
    assert [p.startswith("r-") for p in both.prompt_ids] == [False] * 15 + [True] * 20
    assert both.prompt_ids[-1] == "r-t39", "the newest"
    assert np.isfinite(both.outcomes.success[:15]).all(), "the old tasks have everybody's outcomes"
    assert (np.isfinite(both.outcomes.success[15:]).sum(axis=1) == 1).all()


def test_agents_are_known_by_the_names_of_their_classes(tmp_path):
    old = renamed(two_trades(tmp_path / "truth", n_tasks=30), tmp_path / "old", {"poet": "made/poet"})
    table = pq.read_table(old / "agents.parquet")
    ids = [{"poet": "made/poet"}.get(one, one) for one in table["agent_id"].to_pylist()]
    pq.write_table(
        table.set_column(table.column_names.index("agent_id"), "agent_id", pa.array(ids)), old / "agents.parquet"
    )
    name = live.class_names(["made/poet"])[0]
    new = receipts(tmp_path / "new", n_tasks=40, poet=name, fool="stranger")
    whole = retraining._as_in(retraining._read(old), retraining._read(new))
    assert set(whole.agents["agent_id"].to_pylist()) == {"counter", "made/poet", "sage", "fool", "stranger"}
    assert "made/poet" in whole.outcomes["agent_id"].to_pylist()
    assert name not in whole.outcomes["agent_id"].to_pylist()


def test_better_weights_are_kept_with_a_card_that_says_from_what(base, tmp_path, monkeypatch):
    """Whether they are better is the data's business; here it is arranged, both ways."""
    new = receipts(tmp_path / "new")
    history = two_trades(tmp_path / "truth")
    before = version_of(base, history)
    for better in (True, False):
        said = iter([0.7, 0.6, 0.5, 0.6, 0.55 if better else 0.65])  # in force; two on val; then on test
        monkeypatch.setattr(retraining, "_surprise", lambda *args, said=said, **more: next(said))
        found = retrain(base, history, new, tmp_path / f"out-{better}", CONFIG)
        card = json.loads((tmp_path / f"out-{better}" / CARD).read_text())
        assert card == json.loads(json.dumps(found.card))
        assert card["from"]["router"] == artifacts.card(base)["sha256"]
        assert card["from"]["history"] == data.digest_of(history)
        assert card["weights"] == ("new" if better else "old")
        assert (found.artifact == str(base)) is not better
        assert version_of(found.artifact, found.history) != before
        if better:
            made = artifacts.card(found.artifact)
            assert made["retrained"]["surprise_on_test"]["with_weights"] == 0.55
            assert made["data"] == artifacts.card(base)["data"], "what the first weights were made of stays said"
    assert version_of(base, history) == before


def test_it_is_the_same_each_time(base, tmp_path):
    new, history = receipts(tmp_path / "new", n_tasks=120), two_trades(tmp_path / "truth", n_tasks=90)
    wrong = renamed(history, tmp_path / "wrong", OTHERS)
    found = [retrain(base, wrong, new, tmp_path / f"out{n}", CONFIG) for n in range(2)]
    assert version_of(found[0].artifact, found[0].history) == version_of(found[1].artifact, found[1].history)


def test_a_quality_that_was_reported_decides_about_success(tmp_path):
    """In a runtime every answer is a success: without its quality all agents would look perfect."""
    new = receipts(tmp_path / "new")
    table = pq.read_table(new / "outcomes.parquet")
    worth = {"counter": 0.9, "poet": 0.3, "sage": 1.0, "fool": 0.0}
    scores = [worth[one] for one in table["agent_id"].to_pylist()]
    table = table.set_column(table.column_names.index("success"), "success", pa.array([1] * len(table)))
    pq.write_table(table.append_column("score", pa.array(scores)), new / "outcomes.parquet")
    graded = retraining._graded(retraining._read(new)).outcomes
    assert graded.equals(retraining._graded(retraining._read(new)).outcomes)
    for agent, expected in worth.items():
        rows = graded.filter(pc.equal(graded["agent_id"], agent))
        assert set(rows["success"].to_pylist()) <= {0.0, 1.0}
        assert pc.mean(rows["success"]).as_py() == pytest.approx(expected, abs=0.12)
        assert set(rows["score"].to_pylist()) == {expected}


class TestNothing:
    def test_too_few_outcomes(self, base, tmp_path):
        with pytest.raises(NothingLearned, match="at least 500"):
            retrain(base, "", receipts(tmp_path / "new"), tmp_path / "out", RetrainConfig(least=500, newest=600))
        assert not (tmp_path / "out").exists()

    def test_nothing_better(self, base, tmp_path, monkeypatch):
        said = iter([0.4, 0.6, 0.5, 0.6, 0.55])
        monkeypatch.setattr(retraining, "_surprise", lambda *args, **more: next(said))
        with pytest.raises(NothingLearned, match=r"0\.5500, what is in force by 0\.4000"):
            retrain(base, two_trades(tmp_path / "truth"), receipts(tmp_path / "new"), tmp_path / "out", CONFIG)
        assert not (tmp_path / "out").exists(), "half a candidate is none"

    def test_time_is_over_and_the_history_is_kept(self, base, tmp_path):
        wrong = renamed(two_trades(tmp_path / "truth", n_tasks=90), tmp_path / "wrong", OTHERS)
        config = RetrainConfig(least=50, newest=400, held_out=0.15, deadline_s=1e-6)
        found = retrain(base, wrong, receipts(tmp_path / "new", n_tasks=120), tmp_path / "out", config)
        assert found.card["weights"] == "old"
        assert "not done in 1e-06 s" in found.card["weights_why"]
        assert found.artifact == str(base)

    def test_a_broken_set_is_told(self, base, tmp_path):
        new = receipts(tmp_path / "new")
        (new / "outcomes.parquet").write_bytes(b"torn")
        with pytest.raises(Exception, match="outcomes"):
            retrain(base, "", new, tmp_path / "out", CONFIG)

    def test_nothing_is_overwritten(self, base, tmp_path):
        (tmp_path / "out").mkdir()
        with pytest.raises(FileExistsError):
            retrain(base, "", receipts(tmp_path / "new"), tmp_path / "out", CONFIG)


def test_without_a_history_there_is_one_afterwards(base, tmp_path):
    found = retrain(base, "", receipts(tmp_path / "new", n_tasks=120), tmp_path / "out", CONFIG)
    assert found.card["surprise_on_test"]["in_force"] is None
    assert found.card["history"]["chosen"] == "receipts"
    assert len(data.load(found.history)) == 120
