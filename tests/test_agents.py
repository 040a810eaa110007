"""What the decorator accepts of agents that hear messages, and what an attempt may report of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from flowray.agents import Context, Task, agent, check_topics, describe, verified_quality
from flowray.errors import ConfigError


class Base:
    def run(self, task):
        return None


class Hears(Base):
    async def on_message(self, message, ctx):
        return None


class HearsSync(Base):
    def on_message(self, message):
        return None


def test_topics_and_reentrance_are_part_of_the_description():
    described = describe(agent(topics=["b", "a", "a"], reentrant=True)(Hears))
    assert described.topics == frozenset("ab") and described.reentrant
    plain = describe(agent()(Base))
    assert plain.topics == frozenset() and not plain.reentrant
    assert describe(agent(topics={"a"})(HearsSync)).topics == {"a"}


class Odd(Base):
    on_message = None


class TakesNothing(Base):
    def on_message(self):
        return None


class TakesThree(Base):
    def on_message(self, message, ctx, more):
        return None


class NoTask(Base):
    def verify(self, answer):
        return 1.0


class WantsContext(Base):
    def verify(self, task, answer, ctx):
        return 1.0


class WantsKeyword(Base):
    def verify(self, task, answer, *, strict):
        return 1.0


class Verified(Base):
    @staticmethod
    def verify(task, answer, strict=False):
        return 1.0


class VerifiedAnyhow(Base):
    def verify(self, *arguments):
        return 1.0


def test_a_verifier_takes_the_task_and_its_answer():
    for target in (Base, Verified, VerifiedAnyhow):
        assert agent()(target) is target


@pytest.mark.parametrize(("said", "quality"), [(True, 1.0), (False, 0.0), (0.25, 0.25), (1, 1.0)])
def test_what_a_verifier_says_is_a_quality(said, quality):
    assert verified_quality(said) == quality


@pytest.mark.parametrize("said", [None, "good", 1.5, -0.1, float("nan")])
def test_what_no_quality_is_is_refused(said):
    with pytest.raises(ConfigError, match="verify"):
        verified_quality(said)


@pytest.mark.parametrize(
    ("target", "fields", "problem"),
    [
        (Base, {"topics": {"a"}}, "it subscribes to topics and has no method on_message"),
        (Base, {"reentrant": True}, "reentrant is about on_message"),
        (HearsSync, {"reentrant": True}, "reentrant needs an async on_message"),
        (TakesNothing, {}, "on_message takes the message"),
        (TakesThree, {}, "on_message takes the message"),
        (Odd, {"topics": {"a"}}, "has no method on_message"),
        (lambda task: None, {"topics": {"a"}}, "has no method on_message"),
        (Hears, {"topics": "news"}, "not one string"),
        (NoTask, {}, "verify\\(self, task, answer\\)"),
        (WantsContext, {}, "WantsContext.verify: takes the task and its answer"),
        (WantsKeyword, {}, "WantsKeyword.verify: takes the task and its answer"),
        (Hears, {"topics": {""}}, "is no topic"),
        (Hears, {"topics": {" a"}}, "is no topic"),
    ],
)
def test_what_does_not_fit_is_refused(target, fields, problem):
    with pytest.raises(ConfigError, match=problem):
        agent(**fields)(target)


def test_topics_come_back_sorted_and_once():
    assert check_topics(["b", "a", "b"]) == ("a", "b")


def test_of_several_reports_the_last_value_of_each_holds():
    ctx = Context(agent_id="a-0")
    assert (ctx.quality, ctx.cost_usd) == (None, None)
    ctx.report(quality=0.25, cost_usd=0.01)
    ctx.report(cost_usd=0.03)
    ctx.report(quality=1)
    ctx.report()
    assert (ctx.quality, ctx.cost_usd) == (1.0, 0.03)


def test_numbers_of_every_type_are_reported_as_floats():
    """They travel between processes, where numpy's own would not arrive."""
    ctx = Context(agent_id="a-0")
    ctx.report(quality=np.float32(0.5), cost_usd=np.int64(2))
    assert (ctx.quality, ctx.cost_usd) == (0.5, 2.0)
    assert type(ctx.quality) is float and type(ctx.cost_usd) is float


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quality": 1.5}, "quality: wants a number from 0 to 1, got 1.5 (leave it out where it is not known)"),
        ({"quality": -0.1}, "quality: wants a number from 0 to 1, got -0.1"),
        ({"quality": float("nan")}, "quality: wants a number from 0 to 1, got nan"),
        ({"quality": True}, "quality: wants a number from 0 to 1, got True"),
        ({"quality": "good"}, "quality: wants a number from 0 to 1, got 'good'"),
        ({"cost_usd": -1}, "cost_usd: wants a number of at least 0, got -1"),
        ({"cost_usd": float("inf")}, "cost_usd: wants a number of at least 0, got inf"),
        ({"quality": 0.9, "cost_usd": -1}, "cost_usd: wants a number of at least 0, got -1"),
    ],
)
def test_a_report_out_of_range_is_refused_and_changes_nothing(wrong, message):
    ctx = Context(agent_id="a-0")
    ctx.report(quality=0.5, cost_usd=0.5)
    with pytest.raises(ConfigError) as caught:
        ctx.report(**wrong)
    assert str(caught.value).startswith(message)
    assert (ctx.quality, ctx.cost_usd) == (0.5, 0.5)


def test_chunks_of_a_context_made_by_hand_are_kept_in_it() -> None:
    ctx = Context(agent_id="a", task_id="t")
    ctx.emit(1)

    async def emitting() -> None:
        await ctx.emit(2)

    asyncio.run(emitting())
    assert ctx.emitted == [1, 2] and ctx.cursor == 0
    with pytest.raises(ConfigError, match=r"ctx\.emit"):
        Context(agent_id="a").emit(1)


def test_a_class_says_how_it_gives_out_chunks() -> None:
    @agent(resumes=True, ahead=3)
    class Reciter:
        def run(self, task: Task) -> Iterator[int]:
            yield 1

    described = describe(Reciter)
    assert (described.resumes, described.ahead) == (True, 3)
    assert list(Reciter().run(Task(id="t"))) == [1], "without a runtime it is a plain generator"
    with pytest.raises(ConfigError, match="ahead"):
        agent(ahead=-1)
