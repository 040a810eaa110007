"""Nothing is lost between offline and live: a task that is handed in is read as its row of the set is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowray.core.model import Asked, Choice, Estimate, Outcome, Receipt, Recorded, Task, TaskId
from flowray.core.naming import class_names
from flowray.core.states import TaskState
from flowray.offers import COUNTS
from flowray.routing import data, estimator, exporting, receipts
from flowray.routing.asked import batch_of
from flowray.routing.estimates import TaskBatch
from flowray.routing.estimator import RouterEstimator
from flowray.routing.live import LiveRouter
from flowray.routing.queries import Queries, decode_queries, encode, query_of
from flowray.routing.rerouting import reroute
from flowray.routing.scoring import Scorer
from flowray.tasks import make_task
from flowray.testing import replay_requests

from .routers import trained
from .sets import two_trades

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
SETS = ("bfcl_agents", "llmrouter_mix", "mmlu_pro_matrix")
BATCH = 64  # as many as the coordinator asks about at once


@pytest.fixture(scope="module")
def offering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose tasks offer tools and choices, some counted and some not."""
    directory = two_trades(tmp_path_factory.mktemp("sets") / "offering")
    return _offering(directory)


def _offering(directory: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(directory / "tasks.parquet")
    rng = np.random.default_rng(3)
    count = table.num_rows

    def some(values: list[Any], share: float) -> list[Any]:
        return [value if rng.random() < share else None for value in values]

    tools = [" ; ".join(f"verse_{n}: makes a rhyme of a line" for n in range(rng.integers(1, 5))) for _ in range(count)]
    columns = {
        "tools_text": some(tools, 0.6),
        "n_tools": some([float(text.count(" ; ") + 1) for text in tools], 0.5),
        "n_params": some([float(n) for n in rng.integers(1, 30, count)], 0.6),
        "choices": some(
            [repr(["add them", "multiply", "it isn't so"][: n + 1]) for n in rng.integers(1, 3, count)], 0.5
        ),
        "n_options": some([float(n) for n in rng.integers(2, 9, count)], 0.5),
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, directory / "tasks.parquet")
    return directory


def handed_in(directory: Path, split: str) -> list[Task]:
    return [make_task(lambda value, field: None, **request) for request in replay_requests(directory, split)]


def assert_alike(one: TaskBatch, other: TaskBatch) -> None:
    assert one.texts == other.texts and one.choices == other.choices and one.tools == other.tools
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def every_split(directory: Path) -> tuple[TaskBatch, list[Task]]:
    return data.load(directory).tasks, handed_in(directory, "")


def test_a_task_is_read_as_its_row_is(offering: Path) -> None:
    rows, tasks = every_split(offering)
    assert sum(bool(task.counts) for task in tasks) > 100
    assert_alike(batch_of([query_of(task, ()) for task in tasks], {}, 0), rows)


@cache
def network() -> RouterEstimator:
    return RouterEstimator(trained().network)


def live_and_offline(router: RouterEstimator, directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of success that a live router says into which nothing was learned, and those by hand."""
    recorded = data.load(directory)
    judged, histories = recorded.split("test"), recorded.histories()
    names = tuple(class_names(judged.agents.agent_ids))
    live = LiveRouter(router, recorded)
    tasks, said, by_hand = handed_in(directory, "test"), [], []
    for at in range(0, len(tasks), BATCH):
        together = tasks[at : at + BATCH]
        said += live.estimate([task.id for task in together], [query_of(task, names) for task in together])
        by_hand.append(router.estimate(judged.tasks.take(slice(at, at + BATCH)), judged.agents, histories).success)
    return np.array([[one.success for one in row] for row in said]), np.concatenate(by_hand)


def test_a_live_router_says_what_the_same_router_says_by_hand(offering: Path) -> None:
    live, by_hand = live_and_offline(network(), offering)
    np.testing.assert_array_equal(live.astype(np.float32), by_hand)


def test_what_serve_says_is_the_same(offering: Path) -> None:
    recorded = data.load(offering)
    scorer = Scorer(version="v", router=network(), agents=recorded.agents, histories=recorded.histories())
    here, there = LiveRouter(network(), recorded, version="v"), LiveRouter(network(), recorded, version="v")
    names = tuple(class_names(recorded.agents.agent_ids))
    tasks = handed_in(offering, "test")[:BATCH]
    queries = [query_of(task, names) for task in tasks]
    ids = [task.id for task in tasks]
    answers = scorer.score(decode_queries(encode(Queries(tuple(queries)))))
    assert there.estimate_from(ids, queries, answers) == here.estimate(ids, queries)


def test_receipts_and_sets_made_of_them_have_it_too(offering: Path, tmp_path: Path) -> None:
    recorded = data.load(offering)
    names = tuple(class_names(recorded.agents.agent_ids))
    tasks = handed_in(offering, "test")[:BATCH]
    live = LiveRouter(network(), recorded)
    said = live.estimate([task.id for task in tasks], [query_of(task, names) for task in tasks])
    kept = [_kept(task, estimates) for task, estimates in zip(tasks, said, strict=True)]
    receipts.write(tmp_path / "receipts.parquet", kept)
    again = reroute(receipts.read(tmp_path / "receipts.parquet"), LiveRouter(network(), recorded))
    columns = [again.decisions.candidates.index(name) for name in names]
    expected = np.array([[one.success for one in row] for row in said], np.float32)
    np.testing.assert_array_equal(again.estimates.success[:, columns], expected)
    exporting.write_set(tmp_path / "own", kept)
    mine = data.load(tmp_path / "own")
    by_id = {prompt_id: at for at, prompt_id in enumerate(mine.prompt_ids)}
    asked = batch_of([query_of(task, ()) for task in tasks], {}, 0)
    assert_alike(mine.tasks.take([by_id[task.id] for task in tasks]), asked)


def _kept(task: Task, estimates: tuple[Estimate, ...]) -> Recorded:
    same = (1.0 / len(estimates),) * len(estimates)
    receipt = Receipt("local", "v", estimates, same, same, estimates[0].candidate, False, 1.0, 0.0, 0.0, ())
    outcome = Outcome(
        task_id=TaskId(task.id),
        state=TaskState.SUCCEEDED,
        agent_id=f"{estimates[0].candidate}-0",
        attempts=1,
        choices=(Choice("routed", len(estimates), (), receipt),),
    )
    return Recorded(outcome=outcome, asked=Asked(task.prompt, task.choices, task.tools, "", task.counts))


@pytest.mark.parametrize("name", SETS)
def test_public_sets_are_read_as_their_rows_are(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not there")
    rows, tasks = every_split(SHARED / name)
    assert_alike(batch_of([query_of(task, ()) for task in tasks], {}, 0), rows)


def test_the_shipped_router_says_the_same_of_tools_that_are_called() -> None:
    if not (SHARED / SETS[0]).is_dir():
        pytest.skip(f"{SHARED / SETS[0]} is not there")
    live, by_hand = live_and_offline(estimator.load(ROOT / "models/router/v1", "float32"), SHARED / SETS[0])
    np.testing.assert_array_equal(live.astype(np.float32), by_hand)
