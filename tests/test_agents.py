"""What the decorator accepts of agents that hear messages."""

from __future__ import annotations

import pytest

from flowray.agents import agent, check_topics, describe
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
        (Hears, {"topics": {""}}, "is no topic"),
        (Hears, {"topics": {" a"}}, "is no topic"),
    ],
)
def test_what_does_not_fit_is_refused(target, fields, problem):
    with pytest.raises(ConfigError, match=problem):
        agent(**fields)(target)


def test_topics_come_back_sorted_and_once():
    assert check_topics(["b", "a", "b"]) == ("a", "b")
