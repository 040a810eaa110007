"""What is kept of a task that a router had a word in, so that its choices can be judged, and made again, later."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.book import Entry, asked_of
from flowray.core.commands import GradeTask, ResolveTask, StartAttempt
from flowray.core.coordination import Coordination
from flowray.core.events import CancelRequested, EstimatesReady, GradeGiven
from flowray.core.model import Asked, Choice, Estimate, NotEnough, Receipt, TaskId
from flowray.core.policy import CorePolicy
from flowray.core.routing import RoutingPolicy, draw, run_times, weighed
from flowray.errors import ConfigError

from .builders import Team, kinds, task

RECEIPT = Receipt("local", "v1", (), (), (), "strong", False, 1.0, 0.0, 0.0)


def entry(*receipts: Receipt | None, **fields: str) -> Entry:
    made = Entry(task(**fields), 0.0, 0)
    made.choices = [Choice("routed", 2, (), receipt) for receipt in receipts]
    return made


@given(st.text(), st.text(), st.text(), st.integers(0, 30))
def test_texts_are_cut_alike_and_nothing_is_kept_of_nothing(prompt: str, choices: str, tools: str, most: int) -> None:
    kept = asked_of(entry(RECEIPT, prompt=prompt, choices=choices, tools=tools), most)
    if not most or not (prompt or choices or tools):
        assert kept is None
    else:
        assert kept == Asked(prompt[:most], choices[:most], tools[:most])


def test_only_of_tasks_that_a_router_had_a_word_in() -> None:
    assert asked_of(entry(None, None, prompt="secret"), 100) is None
    assert asked_of(entry(prompt="secret"), 100) is None
    assert asked_of(entry(None, RECEIPT, prompt="plain"), 100) == Asked("plain")


def routed_team(policy: RoutingPolicy) -> Team:
    it = Team(CorePolicy(routing=policy))
    it.ready(name="strong")
    it.ready(name="weak")
    return it


def answer_estimates(it: Team, task_id: str = "t") -> list[StartAttempt]:
    estimates = (Estimate("strong", 0.9, 0.1, None, 2.0, 0.03), Estimate("weak", 0.7, 0.2, None, 1.0, 0.01))
    found = it.tell(EstimatesReady(((TaskId(task_id), estimates),), "local", "v1"))
    return [command for command in found if isinstance(command, StartAttempt)]


@pytest.mark.parametrize(("keep", "kept"), [(4_000, Asked("what?", "a\nb")), (3, Asked("wha", "a\nb")), (0, None)])
def test_the_resolution_has_the_text_and_the_outcome_has_not(keep: int, kept: Asked | None) -> None:
    it = routed_team(RoutingPolicy(enabled=True, explore=0.0, keep_text=keep))
    it.submit(prompt="what?", choices="a\nb")
    (start,) = answer_estimates(it)
    (resolve,) = [c for c in it.answer(start.agent_id, "t") if isinstance(c, ResolveTask)]
    assert resolve.asked == kept
    assert "what?" not in repr(resolve.outcome)


def test_keep_text_is_bounded() -> None:
    with pytest.raises(ConfigError, match="keep_text"):
        RoutingPolicy(keep_text=-1)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 0.99), st.floats(0, 0.3), st.floats(0.01, 9), st.floats(0, 1)), min_size=2, max_size=2
    ),
    st.none() | st.floats(0.5, 100.0),
    st.none() | st.floats(0.1, 1.0),
    st.none() | st.floats(0.01, 1.0),
    st.integers(0, 3),
    st.sampled_from(({}, {"usd": 3.0}, {"slowdown": 0.5, "good": 0.0})),
)
def test_a_receipt_has_all_that_its_choice_followed_from(
    numbers: list[tuple[float, float, float, float]],
    deadline_s: float | None,
    quality: float | None,
    max_cost_usd: float | None,
    waiting: int,
    weights: dict[str, float],
) -> None:
    """The law that `router replay` rests on: the same policy over the same receipt gives the same probabilities."""
    policy = RoutingPolicy(enabled=True, usd=0.5, explore=0.1, tiers={"primary": 0.01})
    it = routed_team(policy)
    names = ("strong", "weak")
    estimates = tuple(Estimate(n, p, d, None, s, usd) for n, (p, d, s, usd) in zip(names, numbers, strict=True))
    found = []
    for number in range(2 + waiting):  # the first two are taken at once, the others wait
        it.submit(f"t-{number}", deadline_s=deadline_s, quality=quality, max_cost_usd=max_cost_usd, weights=weights)
        it.now += 0.01
        it.tell(EstimatesReady(((TaskId(f"t-{number}"), estimates),), "local", "v1"))
        standing = it.core.asking.standing(TaskId(f"t-{number}"))
        entry = it.core.book.open[TaskId(f"t-{number}")]
        found.append(standing.receipt if standing is not None else entry.choices[0].receipt)
    for receipt in found:
        assert receipt is not None and receipt.waits_s is not None
        again = draw(
            receipt.estimates,
            run_times(receipt.estimates),
            receipt.waits_s or (0.0, 0.0),
            receipt.remaining_s,
            weighed(policy, receipt.weights),
            Random(0),
            extras=receipt.extras,
            quality=receipt.thrift,
            max_cost_usd=receipt.max_cost_usd,
        )
        assert (again.values, again.propensities) == (receipt.values, receipt.propensities)


def test_a_task_that_has_ended_is_graded_and_an_open_one_is_not() -> None:
    it = Team()
    it.ready()
    it.submit()
    assert it.tell(GradeGiven(TaskId("t"), 0.5, "me")) == []
    it.answer("writer-0", "t")
    it.now = 7.0
    (grade,) = it.tell(GradeGiven(TaskId("t"), 0.5, "me"))
    assert grade == GradeTask(TaskId("t"), 0.5, 7.0, "me")
    assert grade.durable and grade.waits
    assert kinds(it.tell(GradeGiven(TaskId("t"), 0.6))) == ["GradeTask"]
    it.restart()
    assert it.core.book.open == {}


def test_answers_that_were_not_enough_are_remembered_through_a_restart() -> None:
    it = Team()
    it.ready(2)
    it.submit(least_quality=0.8)
    first = it.core.book.open[TaskId("t")].agent_id
    it.answer(first, "t", quality=0.3, cost_usd=0.01, run_s=2.0)
    it.tick(1.0)
    it.restart()
    saved = it.core.snapshot()
    assert saved.tasks[0].not_enough == (NotEnough(1, 0.3, 2.0, 0.01),)
    again = Coordination.recover(epoch=3, rng=Random(0), now=it.now, snapshot=saved)
    (ended,) = again.handle(CancelRequested(TaskId("t")), it.now)[:1]
    assert isinstance(ended, ResolveTask)
    assert ended.outcome.not_enough == (NotEnough(1, 0.3, 2.0, 0.01),)
