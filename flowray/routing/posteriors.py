"""What changed since the past that a router reads: residuals of outcomes, learned one by one as they come in.

A router answers from a fixed past; between two refits of it agents get better, worse, slower, dearer. This layer sits
on top of any router and learns by how much what happens differs from what the router said, for each agent and kind of
task. Nothing here is random, and without outcomes it changes nothing. A router that was refitted says other things:
give it new posteriors.

**Posterior.** With r the residual of an outcome (grade - expected) and s[k] the shares of kinds of its task, an agent's
evidence is a decayed weight and sum, overall and for each kind,

    W <- W d + 1,    R <- R d + r;    W[k] <- W[k] d**s[k] + s[k],    R[k] <- R[k] d**s[k] + s[k] r

where d halves evidence in `half_life` outcomes: of the agent overall, of that kind for a kind's. Both means are shrunk
by strengths that are counted in outcomes (normal priors, empirical Bayes): the agent's towards no change, a kind's
towards the agent's,

    m = R / (W + agent_strength),    m[k] = (R[k] + kind_strength m) / (W[k] + kind_strength),

so that an agent which fails everywhere is known after few outcomes, and so is one that changed at one kind alone.
Corrected is expected + m + sum of s[k] (m[k] - m): in probability for success, in natural logarithms for seconds and
dollars, where one outcome pulls no further than a limit from what is believed (Huber 1964, "Robust estimation of a
location parameter"), so that the belief follows what is usual and not the outliers. Its variance is that of one
outcome times 1 / (W + agent_strength) + sum of s[k]**2 / (W[k] + kind_strength).

**Change.** In a stable world the router knows better than a few outcomes do, so the strengths are great; that would be
slow when the world changes. Therefore each agent's standardised surprises z = (grade - corrected) / deviation feed a
two-sided CUSUM (Page 1954, "Continuous inspection schemes", Biometrika 41),

    up <- max(0, up + z - slack),    down <- max(0, down - z - slack),    an alarm when one exceeds `alarm_at`.

A side was 0 when the change probably began (Hinkley 1971, "Inference about the change-point from cumulative sum tests",
Biometrika 58), so evidence since then is kept apart and is all that an alarm leaves of the agent's evidence. From then
on what the router says of this agent is doubted: strengths are small and deviations great, which wears off with its
outcomes. Alarms about two agents soon after each other make everybody doubted, for then the world changed, and those
that became better are not seen by who no longer asks them. One alone does not: on recorded outcomes, doubting everybody
because of one failing agent cost up to six points of success among the others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats

Doubles = npt.NDArray[np.float64]

PROBABLE = (0.01, 0.99)  # what a correction does not take a probability beyond
_LEAST_VARIANCE = 0.04  # of an outcome: a failure where success was sure must not alarm alone
_NOBODY = 0  # the row of an agent without outcomes
_UP, _DOWN = 0, 1  # sides of the CUSUM
_SETTLED = 1e-3  # doubt that makes no difference any more


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorPolicy:
    """How fast to learn and to forget; strengths are in outcomes. `python -m bench shift` measures the defaults."""

    half_life: float = 500.0  # outcomes after which evidence counts half, > 0
    agent_strength: float = 160.0  # that pulls an agent's correction to none, > 0
    kind_strength: float = 80.0  # that pulls a kind's correction to the agent's, > 0
    doubted_agent_strength: float = 1.0  # the same right after an alarm, > 0
    doubted_kind_strength: float = 4.0
    doubt_half_life: float = 500.0  # an agent's outcomes after which half of the doubt is left, > 0
    together: int = 2_000  # outcomes of all agents within which alarms about two make everybody doubted, > 0
    slack: float = 0.25  # of a surprise, in its deviations, that the detector takes for noise, >= 0
    alarm_at: float = 20.0  # of the detector's sum, > 0. Were surprises normal, one false alarm of an agent in some
    # 160,000 of its outcomes (Siegmund 1985, "Sequential Analysis"); a change by one deviation takes 27
    surprise_limit: float = 3.0  # deviations that one outcome counts for at most, > 0
    scale_half_life: float = 100.0  # as half_life, for seconds and dollars
    scale_strength: float = 8.0  # as both strengths, for seconds and dollars
    scale_deviation: float = 0.5  # of the logarithm of one attempt's seconds or dollars, > 0
    scale_limit: float = 1.0  # of a logarithm, that one outcome pulls at most, > 0
    max_agents: int = 1_024  # whose outcomes are remembered: those seen last
    max_detections: int = 256  # that are listed: the newest

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "slack" else 1 if field.name.startswith("max_") else math.ulp(0.0)
            if not least <= value < math.inf:
                raise ValueError(f"{field.name} must be {'positive' if least else 'at least 0'}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """An agent was found to have changed."""

    agent: str
    at_outcome: int  # how many outcomes had been observed of all agents, this one included
    better: bool  # it succeeds more than was believed; else less
    outcomes: float  # decayed number of its outcomes since the change probably began


class Posteriors:
    """What outcomes say about agents beyond what the router says.

    Not thread-safe. Memory is bounded by `policy.max_agents` x kinds: when it is full, the agent that was observed
    longest ago is forgotten.
    """

    def __init__(self, kinds: Sequence[str], policy: PosteriorPolicy | None = None) -> None:
        """`kinds` are the names of the shares that tasks come with, in their order; none is fine."""
        self.policy = policy or PosteriorPolicy()
        self.kinds = tuple(kinds)
        self.observed = 0  # outcomes of success so far
        self._rows: dict[str, int] = {}  # agent -> row, the one observed longest ago first
        self._asked: tuple[tuple[str, ...], npt.NDArray[np.intp]] = ((), np.zeros(0, np.intp))
        rules, width = self.policy, len(self.kinds) + 1
        self._success = _Evidence(width, rules.half_life, n_parts=3)
        self._seconds = _Evidence(width, rules.scale_half_life)
        self._dollars = _Evidence(width, rules.scale_half_life)
        self._calm = _strengths(width, rules.agent_strength, rules.kind_strength)
        self._scales = _strengths(width, rules.scale_strength, rules.scale_strength)
        self._calming = 0.5 ** (1.0 / rules.doubt_half_life)  # what an outcome leaves of doubt
        self._doubt = [0.0]  # [rows] 0..1 of what the router says
        self._cusum = [[0.0, 0.0]]  # [rows][sides]
        self._detections: deque[Detection] = deque(maxlen=rules.max_detections)
        self._refresh_all()

    def corrected(self, agents: Sequence[str], kinds: Floats, success: Floats) -> tuple[Floats, Floats]:
        """The router's `success` [tasks, agents] corrected by what was observed, and its standard deviation, alike.

        `kinds` [tasks, kinds] are shares that sum to at most 1; what is missing to 1 (and NaN) counts as unknown kind,
        for which the agent's overall correction stands. NaN in `success` stays NaN, in both.

        Raises:
            ValueError: shapes do not fit each other.
        """
        shift, spread = self._success.read(self._rows_of(agents), _known(kinds))
        shift += success
        low, high = np.minimum(success, PROBABLE[0]), np.maximum(success, PROBABLE[1])
        better = np.minimum(np.maximum(shift, low, out=shift), high, out=shift)
        spread *= better * (1.0 - better)
        return better.astype(np.float32), np.sqrt(spread, out=spread).astype(np.float32)

    def corrected_seconds(self, agents: Sequence[str], kinds: Floats, latency_s: Floats) -> tuple[Floats, Floats]:
        """`latency_s` [tasks, agents] times the factor learned, and the standard deviation of its logarithm."""
        return self._scaled(self._seconds, agents, kinds, latency_s)

    def corrected_dollars(self, agents: Sequence[str], kinds: Floats, cost_usd: Floats) -> tuple[Floats, Floats]:
        """`cost_usd` [tasks, agents] times the factor learned, and the standard deviation of its logarithm."""
        return self._scaled(self._dollars, agents, kinds, cost_usd)

    def observe(self, agent: str, kinds: Floats, expected: float, grade: float) -> None:
        """One outcome: what the router said of it, uncorrected, and how it was, both 0..1; NaN is nothing known.

        Raises:
            ValueError: one of them is outside of 0..1.
        """
        if math.isnan(expected) or math.isnan(grade):
            return
        if not (0.0 <= expected <= 1.0 and 0.0 <= grade <= 1.0):
            raise ValueError(f"expected and grade of {agent!r} must lie in 0..1, got {expected!r} and {grade!r}")
        rules, row, shares = self.policy, self._row_for(agent), _known(kinds)
        believed = min(max(expected + self._success.shift_of(row, shares), PROBABLE[0]), PROBABLE[1])
        surprise = (grade - believed) / math.sqrt(max(believed * (1.0 - believed), _LEAST_VARIANCE))
        surprise = min(max(surprise, -rules.surprise_limit), rules.surprise_limit)
        self._success.add(row, shares, grade - expected)
        self.observed += 1
        self._wear_off(row)
        sides = self._cusum[row]
        for side, signed in ((_UP, surprise), (_DOWN, -surprise)):
            sides[side] = max(sides[side] + signed - rules.slack, 0.0)
            if sides[side] == 0.0:
                self._success.clear_since(row, side)
        if max(sides) > rules.alarm_at:
            self._alarm(agent, row, _UP if sides[_UP] > sides[_DOWN] else _DOWN)
        else:
            self._refresh(row)

    def revise(self, agent: str, kinds: Floats, change: float, since: Doubles) -> None:
        """An outcome that was observed is worth `change` more than was thought.

        `since` [1 + kinds] is the weight of the agent's outcomes after it: their number, and their shares of kinds.
        Whom nothing is known of any more, and evidence that was given up since, stays as it is.
        """
        row = self._rows.get(agent)
        if row is not None:
            self._success.revise(row, _known(kinds), change, since)
            self._refresh(row)

    def observe_seconds(self, agent: str, kinds: Floats, expected_s: float, latency_s: float) -> None:
        """How long an attempt took, and what the router had said, uncorrected; what is not positive is not known."""
        self._observe_scale(self._seconds, agent, kinds, expected_s, latency_s)

    def observe_dollars(self, agent: str, kinds: Floats, expected_usd: float, cost_usd: float) -> None:
        """What an attempt cost, and what the router had said, uncorrected; what is not positive is not known."""
        self._observe_scale(self._dollars, agent, kinds, expected_usd, cost_usd)

    def drift(self, agent: str) -> float:
        """How far the agent's detector is on its way to an alarm, 0..1; 0 for one without outcomes."""
        return max(self._cusum[self._rows.get(agent, _NOBODY)]) / self.policy.alarm_at

    def detections(self) -> tuple[Detection, ...]:
        """The changes found, oldest first; at most `policy.max_detections`."""
        return tuple(self._detections)

    def snapshot(self) -> dict[str, Any]:
        """All that was learned, as plain data that JSON keeps exactly."""
        rows = [_NOBODY, *self._rows.values()]
        return {
            "kinds": list(self.kinds),
            "agents": list(self._rows),
            "observed": self.observed,
            "success": self._success.sums[rows].tolist(),
            "seconds": self._seconds.sums[rows].tolist(),
            "dollars": self._dollars.sums[rows].tolist(),
            "doubt": [self._doubt[row] for row in rows],
            "cusum": [list(self._cusum[row]) for row in rows],
            "detections": [asdict(detection) for detection in self._detections],
        }

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any], policy: PosteriorPolicy | None = None) -> Posteriors:
        """As it was when the snapshot was taken, under this policy.

        Raises:
            ValueError: the snapshot does not fit itself.
        """
        made = cls(snapshot["kinds"], policy)
        agents = list(snapshot["agents"])
        kept = agents[-made.policy.max_agents :]
        chosen = [_NOBODY, *range(len(agents) - len(kept) + 1, len(agents) + 1)]
        if not len(set(agents)) + 1 == len(agents) + 1 == len(snapshot["doubt"]) == len(snapshot["cusum"]):
            raise ValueError(
                f"doubt and cusum must have one entry more than the {len(agents)} agents, no two of a name"
            )
        for agent in kept:
            made._row_for(agent)
        for name, evidence in (("success", made._success), ("seconds", made._seconds), ("dollars", made._dollars)):
            values = np.array(snapshot[name], np.float64)
            if values.shape != (len(agents) + 1, *evidence.sums.shape[1:]):
                raise ValueError(f"{name} is of shape {values.shape} for {len(agents)} agents, {len(made.kinds)} kinds")
            evidence.sums[: len(chosen)] = values[chosen]
        made._doubt = [float(snapshot["doubt"][at]) for at in chosen]
        made._cusum = [[float(side) for side in snapshot["cusum"][at]] for at in chosen]
        made.observed = int(snapshot["observed"])
        made._detections.extend(Detection(**each) for each in snapshot["detections"])
        made._refresh_all()
        return made

    def _alarm(self, agent: str, row: int, side: int) -> None:
        """The agent changed: forget what was before, and doubt what is said of it, or of everybody."""
        since = self._success.forget(row, side)
        self._detections.append(Detection(agent=agent, at_outcome=self.observed, better=side == _UP, outcomes=since))
        self._cusum[row] = [0.0, 0.0]
        recently = self.observed - self.policy.together
        others = {each.agent for each in self._detections if each.at_outcome >= recently} - {agent}
        if others:
            self._doubt = [1.0] * len(self._doubt)
        self._doubt[row] = 1.0
        self._refresh_all()

    def _scaled(
        self, evidence: _Evidence, agents: Sequence[str], kinds: Floats, expected: Floats
    ) -> tuple[Floats, Floats]:
        shift, spread = evidence.read(self._rows_of(agents), _known(kinds))
        deviation = self.policy.scale_deviation * np.sqrt(spread)
        deviation[np.isnan(expected)] = np.nan
        return (expected * np.exp(shift)).astype(np.float32), deviation.astype(np.float32)

    def _observe_scale(self, evidence: _Evidence, agent: str, kinds: Floats, expected: float, actual: float) -> None:
        if not (0.0 < expected < math.inf and 0.0 < actual < math.inf):
            return
        row, shares, limit = self._row_for(agent), _known(kinds), self.policy.scale_limit
        believed = evidence.shift_of(row, shares)
        pull = math.log(actual / expected) - believed
        evidence.add(row, shares, believed + min(max(pull, -limit), limit))
        evidence.refresh(row, self._scales)

    def _rows_of(self, agents: Sequence[str]) -> npt.NDArray[np.intp]:
        """The rows of agents; those asked about last are kept, since a team is asked about again and again."""
        asked = tuple(agents)
        if asked != self._asked[0]:
            self._asked = asked, np.array([self._rows.get(agent, _NOBODY) for agent in asked], np.intp)
        return self._asked[1]

    def _row_for(self, agent: str) -> int:
        """The row of an agent that is observed now; the agent observed longest ago may have to make room."""
        row = self._rows.pop(agent, None)
        if row is None:
            row = self._new_row()
        self._rows[agent] = row
        return row

    def _new_row(self) -> int:
        self._asked = ((), np.zeros(0, np.intp))
        if len(self._rows) < self.policy.max_agents:
            row = len(self._doubt)
            self._doubt.append(self._doubt[_NOBODY])
            self._cusum.append([0.0, 0.0])
        else:
            row = self._rows.pop(next(iter(self._rows)))
            self._doubt[row], self._cusum[row] = self._doubt[_NOBODY], [0.0, 0.0]
        for evidence in (self._success, self._seconds, self._dollars):
            evidence.empty(row)
        self._refresh(row)
        self._seconds.refresh(row, self._scales)
        self._dollars.refresh(row, self._scales)
        return row

    def _wear_off(self, row: int) -> None:
        doubt = self._doubt[row] * self._calming
        self._doubt[row] = doubt if doubt > _SETTLED else 0.0

    def _refresh(self, row: int) -> None:
        rules, doubt = self.policy, self._doubt[row]
        if not doubt:
            self._success.refresh(row, self._calm)
            return
        agent = rules.agent_strength * (rules.doubted_agent_strength / rules.agent_strength) ** doubt
        kind = rules.kind_strength * (rules.doubted_kind_strength / rules.kind_strength) ** doubt
        self._success.refresh(row, _strengths(len(self._calm), agent, kind))

    def _refresh_all(self) -> None:
        for row in range(len(self._doubt)):
            self._refresh(row)
            self._seconds.refresh(row, self._scales)
            self._dollars.refresh(row, self._scales)


class _Evidence:
    """Decayed residuals of one quantity and the corrections that follow, ready to be read.

    Of its parts the first is all evidence; the others are the same since each side of a detector was 0.
    """

    def __init__(self, width: int, half_life: float, n_parts: int = 1) -> None:
        self._decay = 0.5 ** (1.0 / half_life)
        self.sums = np.zeros((1, n_parts, 2, width))  # [rows, parts, weight and sum, overall and kinds]
        self._read = np.zeros((1, 2, width))  # [rows, correction and variance of the agent, and what a kind adds]
        self._added = np.ones((2, width))  # of one outcome: weight and sum; kept, for making it costs more than filling

    def read(self, rows: npt.NDArray[np.intp], shares: Doubles) -> tuple[Doubles, Doubles]:
        """Corrections, and their variances in variances of one outcome: [tasks, agents] each."""
        found = self._read[rows]  # [agents, 2, 1 + kinds]
        weights = np.ones((len(shares), found.shape[2]))  # [tasks, 1 + kinds]
        weights[:, 1:] = shares
        return np.dot(weights, found[:, 0].T), np.dot(weights * weights, found[:, 1].T)

    def shift_of(self, row: int, shares: Doubles) -> float:
        """The correction of one agent at one task."""
        shift = self._read[row, 0]
        return float(np.dot(shares, shift[1:])) + float(shift[0])

    def add(self, row: int, shares: Doubles, residual: float) -> None:
        """Take in one residual: all that is older fades."""
        added = self._added
        weight = added[0]
        weight[1:] = shares
        np.multiply(weight, residual, out=added[1])
        sums = self.sums[row]
        sums *= self._decay**weight
        sums += added

    def revise(self, row: int, shares: Doubles, change: float, since: Doubles) -> None:
        """Change one residual that was taken in before outcomes of weight `since`, in the parts that still have it."""
        weight = np.ones(1 + len(shares))
        weight[1:] = shares
        # Undecayed, a part that has it holds at least since + 1 outcomes; these are what so many have faded to.
        least = (1.0 - self._decay ** (since[0] + 1.0)) / (1.0 - self._decay)
        holding = self.sums[row, :, 0, 0] >= least * (1.0 - 1e-9)
        self.sums[row, holding, 1] += weight * change * self._decay**since

    def clear_since(self, row: int, side: int) -> None:
        """A side of the detector is 0: no change began before now."""
        self.sums[row, 1 + side] = 0.0

    def forget(self, row: int, side: int) -> float:
        """Keep only what came since a side was 0; gives the weight of that."""
        self.sums[row, 0] = self.sums[row, 1 + side]
        self.sums[row, 1:] = 0.0
        return float(self.sums[row, 0, 0, 0])

    def empty(self, row: int) -> None:
        """Make room for an agent without outcomes at a row, which may be the one after the last."""
        if row == len(self.sums):
            more = len(self.sums)  # doubling, so that many agents cost as little each as few
            self.sums = np.concatenate([self.sums, np.zeros((more, *self.sums.shape[1:]))])
            self._read = np.concatenate([self._read, np.zeros((more, *self._read.shape[1:]))])
        self.sums[row] = 0.0

    def refresh(self, row: int, strengths: Doubles) -> None:
        """Work out the corrections of one agent anew."""
        weight, total = self.sums[row, 0]
        shift, variance = self._read[row]
        np.add(weight, strengths, out=variance)
        np.reciprocal(variance, out=variance)
        mean = float(total[0]) * float(variance[0])
        np.multiply(weight, -mean, out=shift)
        shift += total
        shift *= variance
        shift[0] = mean


def _strengths(width: int, agent: float, kind: float) -> Doubles:
    """[overall and kinds] by what means are shrunk."""
    strengths = np.full(width, kind)
    strengths[0] = agent
    return strengths


def _known(kinds: Floats) -> Doubles:
    """Shares as numbers to reckon with; unknown ones are 0."""
    shares = kinds.astype(np.float64)
    flat = shares.ravel()
    return shares if math.isfinite(np.dot(flat, flat)) else np.nan_to_num(shares)
