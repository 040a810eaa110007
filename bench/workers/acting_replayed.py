"""What a second attempt is worth, computed from recorded outcomes with the estimates that a coordinator has.

Each task of a set is done four ways. Everybody chooses by expected success alone; agents' past is the set's `train`.

    one       the class that the router expects most of, once
    copies    a second class at the same time where `flowray.core.acting` says so; whoever succeeds counts. Paid from
              credits, in the order of the set, as the core does
    retry     the same first class; when it has failed the best of the others, of which the router knows that
    ladder    as retry, but the first class is the cheapest one good enough

    *_success            mean success
    *_mended_ratio       of the tasks at which `one` failed and some class would have succeeded, the share that succeeds
    *_extra_cost_ratio   dollars beyond those of `one`, relative to these
    *_seconds_ratio      mean seconds of tasks that both ways succeed at, relative to `retry` (where they are recorded)
    copies_share_ratio   share of tasks that were copied

    ladder_<a>_<n>_*     a ladder of so many attempts whose first class needs n percent of the best expected success
    within_<a>_*         that of them which mends most on `val` for at most `AFFORDABLE` more money there

Nothing is chosen on the judged split: `chosen_*` are the thresholds that the `val` split gives, as the best of a grid
by success gained less `DOUBLING` times the share of money added, over the sets together.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import structs

from bench.workers.common import main
from flowray.core.acting import ActingPolicy, gains
from flowray.core.hedging import Credits
from flowray.core.model import Estimate, Receipt
from flowray.core.naming import class_names
from flowray.core.routing import RoutingPolicy, draw, run_times
from flowray.routing import data, estimator
from flowray.routing.asked import known
from flowray.routing.estimates import TaskBatch
from flowray.routing.judge import filled_costs
from flowray.routing.live import LiveRouter
from flowray.routing.queries import Query

DOUBLING = 0.05  # of success, that doubling the money must bring
UNSURE = (0.3, 0.5, 0.7, 0.9, 1.0)
GAINS = (0.0, 0.025, 0.04, 0.05, 0.06, 0.075, 0.1, 0.125)
SUCCESS_ALONE = RoutingPolicy(explore=0.0, good=0.0, slowdown=0.0, second=0.0, usd=0.0, use_quality=0.0)
ATTEMPTS = (2, 3)
THRIFTS = (1.0, 0.98, 0.97, 0.95, 0.9, 0.85, 0.8)  # shares of the best, as `Task.quality` has them
AFFORDABLE = 0.2  # of the money of `one`, that mending may cost beyond it
Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


def work(settings: dict[str, Any]) -> dict[str, float]:
    artifact = Path(settings["artifact"]).resolve()
    sets = {Path(each).name: Recorded(artifact, Path(each).resolve()) for each in settings["sets"]}
    valued = {name: Decided.of(each, "val") for name, each in sets.items()}
    figures: dict[str, float] = {}
    best = max(itertools.product(UNSURE, GAINS), key=lambda pair: sum(one.net(*pair) for one in valued.values()))
    figures["chosen_unsure"], figures["chosen_copy_gain"] = best
    added = [each.added() for each in valued.values()]
    figures["chosen_apart"] = sum(real for real, _ in added) / sum(expected for _, expected in added)
    for name, each in sets.items():
        judged = Decided.of(each, settings["split"])
        found = judged.figures(each, settings["quality"])
        for attempts in ATTEMPTS:
            chosen = within(AFFORDABLE, [valued[name].mended(each, quality, attempts) for quality in THRIFTS])
            found[f"within_{attempts}_quality"] = THRIFTS[chosen]
            for at, quality in enumerate(THRIFTS):
                mended = judged.mended(each, quality, attempts)
                names = [f"ladder_{attempts}_{100 * quality:.0f}", *([f"within_{attempts}"] if at == chosen else [])]
                for prefix in names:
                    found[f"{prefix}_mended_ratio"], found[f"{prefix}_extra_cost_ratio"] = mended
        figures |= {f"{metric}_{name}": value for metric, value in found.items()}
    return figures


def within(affordable: float, curve: Sequence[tuple[float, float]]) -> int:
    """The place of the most mended among (mended, extra cost) that is no dearer; else of the cheapest."""
    every = range(len(curve))
    cheap = [at for at in every if curve[at][1] <= affordable]
    return max(cheap, key=lambda at: curve[at][0]) if cheap else min(every, key=lambda at: curve[at][1])


class Split(NamedTuple):
    """Tasks, what was recorded of the classes that can be chosen, and what is asked about them."""

    success: Numbers  # [tasks, classes]
    cost_usd: Numbers
    latency_s: Numbers
    queries: list[Query]


class Recorded:
    """One set, and the router that knows its past."""

    def __init__(self, artifact: Path, directory: Path) -> None:
        self._recorded = data.load(directory)
        self._estimator = estimator.load(artifact, "float32")
        self._router = LiveRouter(self._estimator, self._recorded)
        self._answers: dict[Query, tuple[Estimate, ...]] = {}  # nothing is learned, so the same is said again

    def split(self, name: str) -> Split:
        judged, histories = self._recorded.split(name), self._recorded.histories()
        pool = np.flatnonzero(judged.pool)
        names = class_names(judged.agents.agent_ids)
        candidates = tuple(names[at] for at in pool)
        tasks, outcomes = judged.tasks, judged.outcomes
        queries = [_query(tasks, row, candidates) for row in range(len(tasks))]
        usual = filled_costs(self._estimator.estimate(tasks, judged.agents, histories), judged.agents, histories)
        cost_usd = np.where(np.isfinite(outcomes.cost_usd), outcomes.cost_usd, usual)
        success = np.nan_to_num(outcomes.success[:, pool]).astype(np.float64)
        return Split(success, cost_usd[:, pool].astype(float), outcomes.latency_s[:, pool].astype(float), queries)

    def estimates(self, queries: list[Query]) -> list[tuple[Estimate, ...]]:
        new = [query for query in dict.fromkeys(queries) if query not in self._answers]
        ids = [str(number) for number in range(len(new))]
        self._answers.update(zip(new, self._router.estimate(ids, new), strict=True))
        for task_id in ids:
            self._router.forget(task_id)
        return [self._answers[query] for query in queries]


class Decided(NamedTuple):
    """A split, the class that is chosen for each task, and what the best second one would add by the estimates."""

    of_set: Split
    estimates: list[tuple[Estimate, ...]]
    first: Places  # [tasks]
    confidence: Numbers
    second: Places  # [tasks]
    gain: Numbers  # as if failures were independent

    @classmethod
    def of(cls, recorded: Recorded, split: str) -> Decided:
        of_set = recorded.split(split)
        estimates = recorded.estimates(of_set.queries)
        free = ActingPolicy(apart=1.0)
        first, confidence, second, gain = [], [], [], []
        for row in estimates:
            drawn = draw(row, run_times(row), [0.0] * len(row), None, SUCCESS_ALONE, random.Random(0))
            receipt = _receipt(row, drawn.place, drawn.confidence)
            adds = gains(receipt, receipt.chosen, None, free, SUCCESS_ALONE)
            other = max(adds, key=adds.__getitem__)
            first.append(drawn.place)
            confidence.append(drawn.confidence)
            second.append([each.candidate for each in row].index(other))
            gain.append(adds[other])
        return cls(of_set, estimates, np.array(first), np.array(confidence), np.array(second), np.array(gain))

    def added(self) -> tuple[float, float]:
        """Mean success that the second class adds everywhere: what it was, and what independence would give."""
        rows = np.arange(len(self.first))
        success = self.of_set.success
        real = (1.0 - success[rows, self.first]) * success[rows, self.second]
        return float(real.mean()), float(self.gain.mean())

    def copied(self, policy: ActingPolicy) -> npt.NDArray[np.bool_]:
        """[tasks] where two run at once: what the core decides, credits and all."""
        account = Credits(policy.copy_share, policy.copy_burst)
        found = []
        for confidence, gain in zip(self.confidence, self.gain, strict=True):
            account.earn()
            wanted = confidence < policy.unsure and policy.apart * gain >= policy.copy_gain and account.enough
            if wanted:
                account.pay()
            found.append(wanted)
        return np.array(found)

    def net(self, unsure: float, copy_gain: float) -> float:
        """What thresholds are worth."""
        two = self.copied(ActingPolicy(unsure=unsure, copy_gain=copy_gain, copy_share=1.0))
        rows, success, cost_usd = np.arange(len(two)), self.of_set.success, self.of_set.cost_usd
        mended = two & (success[rows, self.first] == 0) & (success[rows, self.second] > 0)
        extra = cost_usd[rows, self.second][two].sum() / cost_usd[rows, self.first].sum()
        return float(mended.mean() - DOUBLING * extra)

    def mended(self, recorded: Recorded, quality: float, attempts: int) -> tuple[float, float]:
        """Share of the mendable tasks that succeed by a ladder of this thrift, and its extra cost."""
        success, cost_usd, _, _ = self.of_set
        rows = np.arange(len(self.first))
        mendable = (success[rows, self.first] == 0) & (success.max(axis=1) > 0)
        done, usd, _ = self._ladder(recorded, self._thrifty(quality), attempts)
        return float(done[mendable].mean()), float(usd.sum() / cost_usd[rows, self.first].sum() - 1.0)

    def _ladder(self, recorded: Recorded, first: Places, attempts: int) -> tuple[Numbers, Numbers, Numbers]:
        """[tasks] success, dollars and seconds when, as long as it failed, the best of the others is asked."""
        success, cost_usd, latency_s, queries = self.of_set
        rows = np.arange(len(first))
        done, usd, seconds = success[rows, first], cost_usd[rows, first], latency_s[rows, first]
        tried = [first]
        for _ in range(attempts - 1):
            failed = np.flatnonzero(done == 0)
            again = first.copy()
            again[failed] = _again(recorded, queries, tried, failed)
            done[failed] = success[failed, again[failed]]
            usd[failed] += cost_usd[failed, again[failed]]
            seconds[failed] += latency_s[failed, again[failed]]
            tried.append(again)
        return done, usd, seconds

    def figures(self, recorded: Recorded, quality: float) -> dict[str, float]:
        """All four ways, with the policy as it is shipped."""
        success, cost_usd, _, _ = self.of_set
        rows = np.arange(len(self.first))
        one = success[rows, self.first]
        two = self.copied(ActingPolicy())
        copies = np.where(two, np.maximum(one, success[rows, self.second]), one)
        copies_usd = cost_usd[rows, self.first] + np.where(two, cost_usd[rows, self.second], 0.0)
        firsts = {"retry": self.first, "ladder": self._thrifty(quality)}
        ways = {"copies": (copies, copies_usd)}
        seconds = {"copies": self._first_good(two)}
        for name, first in firsts.items():
            done, usd, seconds[name] = self._ladder(recorded, first, 2)
            ways[name] = (done, usd)
        mendable = (one == 0) & (success.max(axis=1) > 0)
        spent = cost_usd[rows, self.first].sum()
        found = {"one_success": float(one.mean()), "copies_share_ratio": float(two.mean())}
        for name, (done, usd) in ways.items():
            found[f"{name}_success"] = float(done.mean())
            found[f"{name}_mended_ratio"] = float(done[mendable].mean())
            found[f"{name}_extra_cost_ratio"] = float((usd.sum() - spent) / spent)
        both = two & (copies > 0) & (ways["retry"][0] > 0) & np.isfinite(seconds["copies"] + seconds["retry"])
        if both.any():
            found["copies_seconds_ratio"] = float(seconds["copies"][both].mean() / seconds["retry"][both].mean())
        return found

    def _thrifty(self, quality: float) -> Places:
        chosen = []
        for row in self.estimates:
            drawn = draw(row, run_times(row), [0.0] * len(row), None, SUCCESS_ALONE, random.Random(0), quality=quality)
            chosen.append(drawn.place)
        return np.array(chosen)

    def _first_good(self, two: npt.NDArray[np.bool_]) -> Numbers:
        """[tasks] seconds until the first good answer, infinite without one."""
        success, latency_s, rows = self.of_set.success, self.of_set.latency_s, np.arange(len(self.first))
        times = [
            np.where(success[rows, place] > 0, latency_s[rows, place], np.inf) for place in (self.first, self.second)
        ]
        return np.where(two, np.minimum(*times), times[0])


def _again(recorded: Recorded, queries: list[Query], tried: Sequence[Places], rows: Places) -> Places:
    """[rows] who is asked at these tasks after all of `tried` failed at them, and the router knows that."""
    asked = []
    for row in rows:
        names = queries[row].candidates
        asked.append(structs.replace(queries[row], tried=tuple((names[places[row]], 0.0) for places in tried)))
    chosen = []
    for row, estimates in zip(rows, recorded.estimates(asked), strict=True):
        left = set(range(len(estimates))) - {int(places[row]) for places in tried}
        chosen.append(max(sorted(left), key=lambda at: estimates[at].success))
    return np.array(chosen, np.intp)


def _query(tasks: TaskBatch, row: int, candidates: tuple[str, ...]) -> Query:
    return Query(
        tasks.texts[row],
        candidates,
        choices=tasks.choices[row],
        tools=tasks.tools[row],
        n_tools=known(tasks.n_tools[row]),
        n_params=known(tasks.n_params[row]),
        n_options=known(tasks.n_options[row]),
    )


def _receipt(row: tuple[Estimate, ...], place: int, confidence: float) -> Receipt:
    return Receipt("local", "", row, (), (), row[place].candidate, False, confidence, 0.0, 0.0)


if __name__ == "__main__":
    main(work)
