"""Receipts made up for tests: single outcomes by hand, and a logger whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flowray.core.model import Choice, Estimate, Failure, Outcome, Receipt, StoryLine, TaskId
from flowray.core.states import TaskState
from flowray.routing import receipts
from flowray.routing.decisions import Decisions

NAMES = ("large", "middle", "small")
TRUE = np.array([[0.9, 0.7, 0.3], [0.8, 0.8, 0.6], [0.95, 0.4, 0.1]])  # [kinds, candidates] success
USD = np.array([0.03, 0.01, 0.001])  # [candidates] mean dollars of an attempt
SECONDS = np.array([4.0, 2.0, 0.5])


def receipt(chosen: str = "small", **fields: object) -> Receipt:
    given = {
        "path": "local",
        "version": "v1",
        "estimates": (Estimate("large", 0.9, 0.05, 0.8, 4.0, 0.03), Estimate("small", 0.6, 0.1, None, None, None)),
        "values": (0.8, 0.6),
        "propensities": (0.75, 0.25),
        "explored": False,
        "confidence": 0.9,
        "wait_s": 0.5,
        "took_s": 0.002,
        **fields,
    }
    return Receipt(chosen=chosen, **given)


def routed(chosen: str = "small", **fields: object) -> Choice:
    return Choice("routed", 2, ((f"{chosen}-0", 0.0),), receipt(chosen, **fields))


def outcome(
    number: int = 1,
    *,
    state: TaskState = TaskState.SUCCEEDED,
    choices: tuple[Choice, ...] | None = None,
    ends: tuple[str, ...] = (),
    kind: str = "application",
    told: int | None = None,
    **fields: object,
) -> Outcome:
    """A task with one attempt per choice; all but the last ended as `ends` say: attempt_failed or requeued.

    `kind` is the failure of a task without success, `told` how many lines its story kept.
    """
    choices = (routed(),) if choices is None else choices
    at, story = float(number), [StoryLine(float(number), "accepted")]
    for place, choice in enumerate(choices):
        agent_id = choice.considered[0][0]
        story.append(StoryLine(at + place + 0.25, "started", place + 1, agent_id, "first"))
        if place < len(ends):
            story.append(StoryLine(at + place + 0.75, ends[place], place + 1, agent_id))
    running = len(ends) < len(choices)
    agent_id = choices[-1].considered[0][0] if running else ""
    story.append(StoryLine(at + len(choices), state.value, len(choices), agent_id))
    good = state is TaskState.SUCCEEDED
    return Outcome(
        task_id=TaskId(f"t-{number:06d}"),
        state=state,
        failure=None if good else Failure(kind=kind),
        agent_id=agent_id,
        attempts=len(choices),
        accepted_at=at,
        resolved_at=at + len(choices),
        story=tuple(story[:told]),
        choices=choices,
        **{"run_s": 0.5 if good else 0.0, **fields},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Logger:
    """A router in force whose candidates' true success is known: `TRUE`, for tasks of three kinds, equally frequent."""

    estimated: np.ndarray = field(default_factory=TRUE.copy)  # [kinds, candidates] what its router says
    temperature: float = 0.2  # of the softmax over estimates that it chooses by
    drops: tuple[str, float, float] | None = None  # (candidate, from this share of the tasks on, how much its success)

    def propensities(self) -> np.ndarray:
        """[kinds, candidates]"""
        odds = np.exp(self.estimated / self.temperature)
        return odds / odds.sum(axis=1, keepdims=True)

    def outcomes(self, n_tasks: int, seed: int = 0) -> list[Outcome]:
        rng = np.random.default_rng(seed)
        chances = self.propensities()
        made = []
        for number in range(n_tasks):
            kind = int(rng.integers(len(TRUE)))
            place = int(rng.choice(len(NAMES), p=chances[kind]))
            success = TRUE[kind, place]
            if self.drops is not None and NAMES[place] == self.drops[0] and number >= self.drops[1] * n_tasks:
                success -= self.drops[2]
            good = bool(rng.random() < success)
            choice = routed(
                NAMES[place],
                estimates=tuple(
                    Estimate(name, float(self.estimated[kind, c]), 0.05, None, float(SECONDS[c]), float(USD[c]))
                    for c, name in enumerate(NAMES)
                ),
                values=tuple(self.estimated[kind].tolist()),
                propensities=tuple(chances[kind].tolist()),
                explored=bool(place != int(self.estimated[kind].argmax())),
            )
            spread = float(rng.lognormal(-0.02, 0.2))  # mean 1
            made.append(
                outcome(
                    number,
                    state=TaskState.SUCCEEDED if good else TaskState.DEAD,
                    choices=(choice,),
                    **(
                        {"cost_usd": float(USD[place]) * spread, "run_s": float(SECONDS[place]) * spread}
                        if good
                        else {}
                    ),
                )
            )
        return made

    def decisions(self, n_tasks: int, seed: int = 0) -> Decisions:
        return decided(self.outcomes(n_tasks, seed))


def decided(outcomes: list[receipts.Told]) -> Decisions:
    return Decisions.of_table(receipts.tabled(outcomes))
