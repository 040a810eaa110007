"""Why an agent: the kind of task, the record, the price; and what is said where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from flowray.errors import InvalidTask
from flowray.routing import data
from flowray.routing.estimates import AgentBatch, Estimates, Histories, Outcomes, TaskBatch
from flowray.routing.explanation import explain

from .sets import two_trades
from .test_evaluation import Reader

POEM = TaskBatch.of_texts(["rhyme stanza"])


@pytest.fixture(scope="module")
def trades(tmp_path_factory):
    return data.load(two_trades(tmp_path_factory.mktemp("sets") / "trades"))


class Priced(Reader):
    """Knows prices, too."""

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        said = super().estimate(tasks, agents, histories)
        price = np.array([{"sage": 10.0}.get(agent_id, 1.0) for agent_id in agents.agent_ids], np.float32)
        return Estimates(
            success=said.success, quality=said.quality, latency_s=said.latency_s,
            cost_usd=np.tile(price, (len(tasks), 1)), confidence=said.confidence, capabilities=said.capabilities,
        )  # fmt: skip


def test_the_best_come_first_with_their_record_at_such_tasks(trades):
    found = explain(Priced(), POEM, trades.agents, trades.histories(), top=2)
    assert found.kind == "poems"
    assert [each.agent_id for each in found.candidates] == ["poet", "sage"]
    poet, sage = found.candidates
    train = trades.split("train")
    poems = np.array(train.labels["task_type"]) == "poems"
    assert poet.alike == poems.sum()
    assert poet.attempts == len(train)
    assert poet.success_alike == pytest.approx(train.outcomes.success[poems, 1].mean(), abs=1e-6)
    assert "past tasks like this one (poems) succeeded" in poet.reasons[0]
    assert sage.reasons[1] == "5.0 points below the first, at 1000% of its cost."


def test_a_stranger_is_said_to_be_one():
    agents = AgentBatch.of_ids(["stranger"])
    nothing = Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, 1))
    found = explain(Reader(), POEM, agents, nothing)
    assert "It has no past here" in found.candidates[0].reasons[0]
    assert found.candidates[0].success_overall is None


def test_the_text_has_all_that_a_person_needs(trades):
    text = explain(Priced(), POEM, trades.agents, trades.histories()).as_text()
    assert "category    poems 100%, sums 0%" in text
    assert "1. poet: success 90%, 8.0 s, $1" in text
    assert text.count("\n1. ") == 1 and "4. " in text and "5. " not in text


@pytest.mark.parametrize(
    ("task", "agents", "field"),
    [(TaskBatch.of_texts([]), ["a"], "task"), (TaskBatch.of_texts(["a", "b"]), ["a"], "task"), (POEM, [], "agents")],
)
def test_one_task_and_somebody_to_do_it(task, agents, field):
    nothing = Histories(tasks=TaskBatch.of_texts(()), outcomes=Outcomes.none(0, len(agents)))
    with pytest.raises(InvalidTask) as caught:
        explain(Reader(), task, AgentBatch.of_ids(agents), nothing)
    assert caught.value.field == field
