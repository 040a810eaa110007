"""Stateful agents as their authors see them: plain classes, checked early, and rehearsed without a runtime."""

from __future__ import annotations

import random
from typing import Any

import pytest

import flowray as fr
from flowray.agents import check_runnable, describe
from flowray.config import TierConfig
from flowray.core.model import StatefulSpec
from flowray.errors import ConfigError, InvalidTask, PayloadError
from flowray.replicas import rehearse
from flowray.runtime.specs import make_spec
from flowray.tasks import make_task
from flowray.values import plain_bytes


class Ledger:
    def __init__(self) -> None:
        self.total = 0

    def apply(self, task: fr.Task) -> int:
        if not isinstance(task.payload, int):
            raise ValueError("not a number")
        self.total += task.payload
        return self.total

    def snapshot(self) -> Any:
        return {"total": self.total}

    def restore(self, state: Any) -> None:
        self.total = state["total"]


class Dice(Ledger):
    def apply(self, task: fr.Task, moment: fr.Moment) -> int:
        self.total += moment.random().randrange(1000) + moment.seq
        return self.total


class Loaded(Ledger):
    def apply(self, task: fr.Task) -> int:
        self.total += random.randrange(10**9)
        return self.total


class Forgetful(Ledger):
    def snapshot(self) -> Any:
        return {"total": self.total % 5}


class Both(Ledger):
    def run(self, task: fr.Task) -> int:
        return 0


class Listening(Ledger):
    def on_message(self, message: fr.Message) -> None:
        """Nobody would hear it."""


class Hasty(Ledger):
    async def apply(self, task: fr.Task) -> int:  # type: ignore[override]
        return 0


class Silent:
    def apply(self, task: fr.Task) -> int:
        return 0


def test_outputs_of_a_rehearsal() -> None:
    outputs = rehearse(Ledger, [5, 7, "x", -3])
    assert outputs[:2] == [5, 12] and outputs[3] == 9
    assert isinstance(outputs[2], ValueError)


def test_a_moment_is_the_same_for_all() -> None:
    first, second = (rehearse(Dice, [1, 2, 3]) for _ in range(2))
    assert first == second and len(set(first)) == 3


@pytest.mark.parametrize("wrong", [Loaded, Forgetful])
def test_a_rehearsal_finds_what_differs(wrong: type) -> None:
    with pytest.raises(ConfigError, match=r"another output, or leads to another state"):
        rehearse(wrong, [5, 7])


def test_a_snapshot_is_plain_data() -> None:
    class Pairs(Ledger):
        def snapshot(self) -> Any:
            return {1, 2}

    with pytest.raises(PayloadError, match=r"snapshot.*sorted list"):
        rehearse(Pairs, [5])


def test_equal_states_have_equal_bytes() -> None:
    assert plain_bytes({"a": 1, "b": [2.5, None]}, "x") == plain_bytes({"b": [2.5, None], "a": 1}, "x")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [(Listening, "on_message and apply"), (Hasty, "async"), (Silent, "snapshot")],
)
def test_a_class_that_cannot_be_one_is_refused(wrong: type, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_runnable(wrong)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"standby": "hot"}, "standby"), ({"snapshot_every": -1}, "snapshot_every"), ({"snapshot_every_s": -0.5}, "_s")],
)
def test_options_out_of_range_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        fr.agent(**options)(type("Odd", (Ledger,), {}))


@pytest.mark.parametrize("options", [{"slots": 2}, {"retry_on": (OSError,)}])
def test_what_a_stateful_agent_cannot_have_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        fr.agent(**options)(type("Odd", (Ledger,), {}))


def test_a_class_with_run_is_an_agent_like_any_other() -> None:
    check_runnable(Both)
    with pytest.raises(ConfigError, match="instead of run"):
        fr.agent(standby="warm")(type("Odd", (Both,), {}))


def test_the_options_are_for_stateful_agents() -> None:
    with pytest.raises(ConfigError, match=r"standby.*no stateful agent"):

        @fr.agent(standby="warm")
        def echo(task: fr.Task) -> str:
            return task.prompt


def test_a_spec_says_how_the_state_is_kept() -> None:
    decorated = fr.agent(standby="warm", snapshot_every=7)(type("Safe", (Ledger,), {}))
    assert describe(decorated).standby == "warm"
    tiers = {"secondary": TierConfig()}
    assert make_spec(decorated, tiers=tiers).stateful == StatefulSpec(standby="warm", snapshot_every=7)
    assert make_spec(Ledger, tiers=tiers).stateful == StatefulSpec()


def test_an_entity_goes_with_an_agent() -> None:
    def pack(value: Any, field: str) -> None:
        return None

    assert make_task(pack, agent="ledger", entity="x").entity == "x"
    with pytest.raises(InvalidTask, match=r"entity.*agent="):
        make_task(pack, entity="x")
    with pytest.raises(InvalidTask, match="entity"):
        make_task(pack, agent="ledger", entity="x" * 600)
