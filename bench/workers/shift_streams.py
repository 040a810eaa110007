"""Streams of recorded tasks that a router sends away one by one, while agents stay as they are or change.

The router is fixed and reads the train outcomes; each task goes to one agent of a team, and only that agent's outcome
is seen, by the online layer (`flowray.routing.posteriors`). Two worlds, for each set, way of exploring and seed:

**stable**: the test tasks once each, in random order. `gain`: mean success less that of the router alone, who always
takes the agent with the highest estimate, on the same tasks. `loss`: log loss of the corrected estimates of all agents,
right before each task's outcome, less that of the router's.

**shifted**: tasks are drawn with replacement, every kind as often; 30 of each kind go by, then the agents change at
once. The quarter of the team that succeeds most and the quarter that succeeds least exchange their outcomes, the best
with the worst and so on: half of the team is other than it was. The best of the unchanged ones fails always from then
on. After n outcomes of each kind the state of the layer is judged on all test tasks, kinds weighted alike, by the
success expected under the propensities of its choices, exploring included:

    recovered(n) = (value with layer after n - value of router alone) / (value of oracle - value of router alone)

The oracle takes, by the label of the task, the agent with the highest new rate in that kind, rates being those of all
recorded tasks (train, val and test) after the exchange.

**seconds** (where they are recorded): the router's seconds of three agents triple; `recovered` is 1 less the share of
the error (median absolute logarithm of actual by estimated, above the error without any change) that is left after so
many outcomes of the agent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.workers.common import main
from flowray.routing import data, estimator
from flowray.routing.data import OutcomeSet
from flowray.routing.features import featurise
from flowray.routing.memory import Views
from flowray.routing.posteriors import PosteriorPolicy, Posteriors

Doubles = npt.NDArray[np.float64]
Propensities = Callable[[Doubles, Doubles, np.random.Generator], Doubles]  # success, deviation -> [tasks, agents]

TEAM = 16  # agents at most, drawn with the seed
WARM = 30  # outcomes of each kind before the change
SECONDS_FACTOR = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Tasks of a set, what the router says of them, and what happened: arrays [tasks, agents]."""

    success: Doubles  # what happened, 1 or 0
    expected: Doubles  # what the router says
    shares: npt.NDArray[np.float32]  # [tasks, kinds] what kinds the router guesses
    kinds: tuple[str, ...]  # names of these
    labels: npt.NDArray[np.intp]  # [tasks] the true kind
    rates: Doubles  # [true kinds, agents] success at all recorded tasks
    latency_s: Doubles  # what happened; NaN where nobody knows
    expected_s: Doubles

    def team(self, rng: np.random.Generator) -> Recorded:
        """With some of the agents, and the tasks at which all of their outcomes are known."""
        chosen = np.sort(rng.permutation(self.success.shape[1])[:TEAM])
        rows = np.flatnonzero(np.isfinite(self.success[:, chosen]).all(axis=1))
        cells = np.ix_(rows, chosen)
        present, labels = np.unique(self.labels[rows], return_inverse=True)
        return Recorded(
            success=self.success[cells],
            expected=self.expected[cells],
            shares=self.shares[rows],
            kinds=self.kinds,
            labels=labels.astype(np.intp),
            rates=self.rates[present][:, chosen],
            latency_s=self.latency_s[cells],
            expected_s=self.expected_s[cells],
        )

    def names(self) -> tuple[str, ...]:
        return tuple(f"agent-{number}" for number in range(self.success.shape[1]))


def greedy(success: Doubles, deviation: Doubles, rng: np.random.Generator) -> Doubles:
    """Always the best."""
    return _with_best(np.zeros_like(success), success, 0.0)


def uniform(share: float) -> Propensities:
    """Epsilon-greedy: with this probability anybody, each as often."""

    def propensities(success: Doubles, deviation: Doubles, rng: np.random.Generator) -> Doubles:
        return _with_best(np.full_like(success, share / success.shape[1]), success, 1.0)

    return propensities


def inverse_gap(gamma: float, cap: float) -> Propensities:
    """SquareCB (Foster & Rakhlin 2020, "Beyond UCB"): 1 / (agents + gamma x gap), in all at most `cap`."""

    def propensities(success: Doubles, deviation: Doubles, rng: np.random.Generator) -> Doubles:
        gap = success.max(axis=1, keepdims=True) - success
        return _with_best(1.0 / (success.shape[1] + gamma * gap), success, cap)

    return propensities


def rivals(scale: float, cap: float) -> Propensities:
    """In closed form: the probability that a rival is better than the best, each by itself, in all at most `cap`.

    Normal with `scale` times the deviations. The sure ones are not explored, and nobody while all are sure.
    """

    def propensities(success: Doubles, deviation: Doubles, rng: np.random.Generator) -> Doubles:
        best = success.argmax(axis=1)
        rows = np.arange(len(success))
        gap = success[rows, best][:, None] - success
        unsure = scale * np.sqrt(deviation**2 + (deviation[rows, best] ** 2)[:, None])
        return _with_best(0.5 * _erfc(gap / (unsure * math.sqrt(2.0))), success, cap)

    return propensities


def thompson(scale: float, cap: float, draws: int = 100) -> Propensities:
    """Thompson sampling: who is the best of a draw, normal with `scale` times the deviations; others at most `cap`.

    Propensities are counted over so many draws, so they are exact for who samples one of these draws.
    """

    def propensities(success: Doubles, deviation: Doubles, rng: np.random.Generator) -> Doubles:
        drawn = success + scale * deviation * rng.standard_normal((draws, *success.shape))
        winner = drawn.argmax(axis=2)  # [draws, tasks]
        share = np.stack([(winner == agent).mean(axis=0) for agent in range(success.shape[1])], axis=1)
        return _with_best(share, success, cap)

    return propensities


EXPLORING: Mapping[str, Propensities] = {
    "greedy": greedy,
    "uniform_1": uniform(0.01),
    "uniform_2": uniform(0.02),
    "uniform_5": uniform(0.05),
    "inverse_gap_100": inverse_gap(100.0, 0.05),
    "inverse_gap_300": inverse_gap(300.0, 0.05),
    "inverse_gap_1000": inverse_gap(1_000.0, 0.05),
    "inverse_gap_3000": inverse_gap(3_000.0, 0.05),
    "thompson_half": thompson(0.5, 0.05),
    "thompson_1": thompson(1.0, 0.05),
    "rivals_half": rivals(0.5, 0.05),
    "rivals_1": rivals(1.0, 0.05),
}


def stable(recorded: Recorded, exploring: Propensities, policy: PosteriorPolicy, seed: int) -> dict[str, float]:
    """One stream in a world that stays as it is."""
    rng = np.random.default_rng(seed)
    world = recorded.team(rng)
    layer, names = Posteriors(world.kinds, policy), world.names()
    got, before, after, explored = 0.0, 0.0, 0.0, 0
    order = rng.permutation(len(world.success))
    for at in order:
        corrected, chosen, best = _choose(layer, names, world, at, exploring, rng)
        got += world.success[at, chosen]
        explored += chosen != best
        before += _log_loss(world.expected[at], world.success[at])
        after += _log_loss(corrected, world.success[at])
        layer.observe(names[chosen], world.shares[at], float(world.expected[at, chosen]), world.success[at, chosen])
    alone = world.success[np.arange(len(order)), world.expected.argmax(axis=1)].mean()
    return {
        "gain": got / len(order) - float(alone),
        "loss": (after - before) / len(order),
        "explored": explored / len(order),
        "alarms": float(len(layer.detections())),
    }


def shifted(
    recorded: Recorded, exploring: Propensities, policy: PosteriorPolicy, seed: int, at: Sequence[int]
) -> dict[str, float]:
    """One stream in which half of the team changes: recovered share `at` so many outcomes of each kind."""
    rng = np.random.default_rng(seed)
    world = recorded.team(rng)
    changed, rates = _changed(world)
    rows = np.arange(len(world.success))
    n_kinds = len(world.rates)
    weight = 1.0 / (np.bincount(world.labels, minlength=n_kinds)[world.labels] * n_kinds)  # [tasks] sums to 1
    oracle = float(weight @ changed[rows, rates.argmax(axis=1)[world.labels]])
    alone = float(weight @ changed[rows, world.expected.argmax(axis=1)])
    layer, names = Posteriors(world.kinds, policy), world.names()

    def recovered() -> float:
        corrected, deviation = layer.corrected(names, world.shares, world.expected.astype(np.float32))
        odds = exploring(corrected.astype(np.float64), deviation.astype(np.float64), np.random.default_rng(seed))
        return (float(weight @ (odds * changed).sum(axis=1)) - alone) / (oracle - alone)

    found, false_alarms, first = {}, 0, math.nan
    of_kind = [np.flatnonzero(world.labels == kind) for kind in range(n_kinds)]
    for number in range(-WARM, max(at) + 1):
        if number == 0:
            false_alarms, before = len(layer.detections()), layer.observed
        if number in at:
            found[f"recovered_{number}"] = recovered()
        happens = world.success if number < 0 else changed
        for task in rng.permutation([rng.choice(tasks) for tasks in of_kind]):
            _, chosen, _ = _choose(layer, names, world, task, exploring, rng)
            expected = float(world.expected[task, chosen])
            layer.observe(names[chosen], world.shares[task], expected, happens[task, chosen])
        if number >= 0 and math.isnan(first) and len(layer.detections()) > false_alarms:
            first = layer.detections()[false_alarms].at_outcome - before
    return {**found, "first_alarm": first, "false_alarms": float(false_alarms)}


def seconds(recorded: Recorded, policy: PosteriorPolicy, seed: int, at: Sequence[int]) -> dict[str, float]:
    """Three agents become three times as slow: the share of the error gone `at` so many outcomes of each."""
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(np.isfinite(recorded.latency_s * recorded.expected_s).sum(axis=0) > max(at))
    gone: dict[int, list[float]] = {n: [] for n in at}
    for agent in rng.permutation(known)[:3]:
        layer = Posteriors(recorded.kinds, policy)
        actual, expected = recorded.latency_s[:, agent], recorded.expected_s[:, agent]
        rows = np.flatnonzero((actual > 0) & (expected > 0))
        usual = np.median(np.abs(np.log(actual[rows] / expected[rows])))
        slow = np.median(np.abs(np.log(SECONDS_FACTOR * actual[rows] / expected[rows])))
        for number in range(max(at) + 1):
            if number in at:
                said, _ = layer.corrected_seconds(["a"], recorded.shares[rows], expected[rows, None].astype(np.float32))
                error = np.median(np.abs(np.log(SECONDS_FACTOR * actual[rows] / said[:, 0])))
                gone[number].append(float((slow - error) / (slow - usual)))
            row = rng.choice(rows)
            layer.observe_seconds("a", recorded.shares[row], expected[row], SECONDS_FACTOR * actual[row])
    return {f"recovered_{n}": float(np.mean(shares)) for n, shares in gone.items()}


def recorded_of(router: estimator.RouterEstimator, whole: OutcomeSet, split: str) -> Recorded:
    """What the router says of a split, with the train outcomes as the agents' past."""
    asked, past = whole.split(split), whole.histories()
    said = router.estimate(asked.tasks, asked.agents, past)
    memory = router.acquaintance(asked.agents, past).records.memory
    features = featurise(asked.tasks)
    shares = memory.recall(Views(traits=features.traits, sense=router.network.serve(features).sense)).kinds
    column = next(name for name in data.KINDS if name in whole.labels)
    present, labels = np.unique(np.array(whole.labels[column]), return_inverse=True)
    pool = np.flatnonzero(whole.pool & whole.outcomes.known.any(axis=0))
    outcomes = whole.outcomes.success[:, pool].astype(np.float64)
    rates = np.stack([np.nanmean(outcomes[labels == kind], axis=0) for kind in range(len(present))])
    return Recorded(
        success=asked.outcomes.success[:, pool].astype(np.float64),
        expected=said.success[:, pool].astype(np.float64),
        shares=shares,
        kinds=memory.kinds.labels if memory.kinds is not None else (),
        labels=labels[[name == split for name in whole.splits]].astype(np.intp),
        rates=rates,
        latency_s=asked.outcomes.latency_s[:, pool].astype(np.float64),
        expected_s=said.latency_s[:, pool].astype(np.float64),
    )


def work(settings: dict[str, Any]) -> dict[str, list[float]]:
    """Figures by name, one for each seed."""
    torch.set_num_threads(1)
    router = estimator.load(settings["router"], "float32")
    policy, seeds = PosteriorPolicy(), range(settings["seeds"])
    found: dict[str, list[float]] = {}
    for name in settings["sets"]:
        recorded = recorded_of(router, data.load(Path(settings["data"]) / name), settings["split"])
        for how in settings["exploring"]:
            runs = [
                {f"stable_{key}": value for key, value in stable(recorded, EXPLORING[how], policy, seed).items()}
                | shifted(recorded, EXPLORING[how], policy, seed, settings["at"])
                for seed in seeds
            ]
            found |= {f"{key}_{name}_{how}": [run[key] for run in runs] for key in runs[0]}
        if np.isfinite(recorded.latency_s).any():
            timed = [seconds(recorded, policy, seed, settings["at"]) for seed in seeds]
            found |= {f"seconds_{key}_{name}": [run[key] for run in timed] for key in timed[0]}
    return {key: [value for value in values if math.isfinite(value)] for key, values in found.items()}


def _choose(
    layer: Posteriors,
    names: tuple[str, ...],
    world: Recorded,
    task: int,
    exploring: Propensities,
    rng: np.random.Generator,
) -> tuple[Doubles, int, int]:
    """Corrected success [agents], who is chosen, who is the best."""
    expected = world.expected[task : task + 1].astype(np.float32)
    corrected, deviation = layer.corrected(names, world.shares[task : task + 1], expected)
    odds = exploring(corrected.astype(np.float64), deviation.astype(np.float64), rng)[0]
    chosen = min(int(np.searchsorted(np.cumsum(odds), rng.random())), len(odds) - 1)
    return corrected[0].astype(np.float64), chosen, int(corrected[0].argmax())


def _changed(world: Recorded) -> tuple[Doubles, Doubles]:
    """Outcomes and rates after the change."""
    order = np.argsort(-world.success.mean(axis=0), kind="stable")
    quarter = max(len(order) // 4, 1)
    source = np.arange(len(order))
    source[order[:quarter]], source[order[::-1][:quarter]] = order[::-1][:quarter], order[:quarter]
    success, rates = world.success[:, source], world.rates[:, source]
    success[:, order[quarter]] = rates[:, order[quarter]] = 0.0
    return success, rates


def _with_best(others: Doubles, success: Doubles, cap: float) -> Doubles:
    """Propensities: `others`, lessened to at most `cap` in all, and the rest for the best."""
    rows, best = np.arange(len(success)), success.argmax(axis=1)
    others = others.copy()
    others[rows, best] = 0.0
    total = others.sum(axis=1, keepdims=True)
    others *= np.minimum(1.0, cap / np.maximum(total, 1e-12))
    others[rows, best] = 1.0 - others.sum(axis=1)
    return others


def _log_loss(probability: Doubles, success: Doubles) -> float:
    bounded = np.clip(probability, 0.01, 0.99)
    return float(-np.log(np.where(success > 0, bounded, 1.0 - bounded)).mean())


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


if __name__ == "__main__":
    main(work)
