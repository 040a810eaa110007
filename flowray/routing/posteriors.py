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
Biometrika 58), so evidence since then is kept apart and is all that an alarm leaves of the agent's evidence. An alarm
also is a reason to doubt what the router says of everybody: agents seldom change alone, and those that became better
are not seen by who no longer asks them. Doubt makes strengths small and deviations great, and wears off with outcomes.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorPolicy:
    """How fast to learn and to forget. Strengths are in outcomes; `bench shift` has the figures behind them."""

    half_life: float = 500.0  # outcomes after which evidence counts half, > 0
    agent_strength: float = 160.0  # that pulls an agent's correction to none, > 0
    kind_strength: float = 80.0  # that pulls a kind's correction to the agent's, > 0
    doubted_agent_strength: float = 4.0  # the same right after an alarm, > 0
    doubted_kind_strength: float = 8.0
    doubt_half_life: float = 500.0  # an agent's outcomes after which half of the doubt is left, > 0
    slack: float = 0.25  # of a surprise, in its deviations, that the detector takes for noise, >= 0
    alarm_at: float = 20.0  # of the detector's sum, > 0
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
        self._asked: tuple[Sequence[str], npt.NDArray[np.intp]] = ((), np.zeros(0, np.intp))
        n_rows, width = min(self.policy.max_agents, 16) + 1, len(self.kinds) + 1
        rules = self.policy
        self._success = _Evidence(n_rows, width, rules.half_life)
        self._seconds = _Evidence(n_rows, width, rules.scale_half_life)
        self._dollars = _Evidence(n_rows, width, rules.scale_half_life)
        self._doubt = np.zeros(n_rows)  # 0..1 of what the router says
        self._cusum = np.zeros((n_rows, 2))
        self._since = np.zeros((n_rows, 2, 2, width))  # [.., side, weight and sum, overall and kinds]
        self._detections: deque[Detection] = deque(maxlen=rules.max_detections)
        self._refresh_all()

    def corrected(self, agents: Sequence[str], kinds: Floats, success: Floats) -> tuple[Floats, Floats]:
        """The router's `success` [tasks, agents] corrected by what was observed, and its standard deviation, alike.

        `kinds` [tasks, kinds] are shares that sum to at most 1; what is missing to 1 (and NaN) counts as unknown kind,
        for which the agent's overall correction stands. NaN in `success` stays NaN, in both.

        Raises:
            ValueError: shapes do not fit each other.
        """
        shares = _known(kinds)
        shift, spread = self._success.read(self._rows_of(agents), shares)
        low, high = np.minimum(success, PROBABLE[0]), np.maximum(success, PROBABLE[1])
        better = np.minimum(np.maximum(success + shift, low), high)
        deviation = np.sqrt(np.maximum(better * (1.0 - better), 0.0) * spread)
        return better.astype(np.float32), deviation.astype(np.float32)

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
        rules = self.policy
        row = self._row_for(agent)
        shares = _known(kinds)
        believed = min(max(expected + self._success.shift_of(row, shares), PROBABLE[0]), PROBABLE[1])
        surprise = (grade - believed) / math.sqrt(max(believed * (1.0 - believed), _LEAST_VARIANCE))
        surprise = min(max(surprise, -rules.surprise_limit), rules.surprise_limit)
        fading, added = self._success.add(row, shares, grade - expected)
        self.observed += 1
        for fewer in (row, _NOBODY):
            self._doubt[fewer] *= 0.5 ** (1.0 / rules.doubt_half_life)
        if self._alarmed(row, surprise, fading, added):
            side = int(np.argmax(self._cusum[row]))
            self._success.sums[row] = self._since[row, side]
            self._detections.append(
                Detection(
                    agent=agent,
                    at_outcome=self.observed,
                    better=side == _UP,
                    outcomes=float(self._since[row, side, 0, 0]),
                )
            )
            self._cusum[row] = 0.0
            self._since[row] = 0.0
            self._doubt[:] = 1.0
            self._refresh_all()
        else:
            self._refresh(row)

    def observe_seconds(self, agent: str, kinds: Floats, expected_s: float, latency_s: float) -> None:
        """How long an attempt took, and what the router had said, uncorrected; what is not positive is not known."""
        self._observe_scale(self._seconds, agent, kinds, expected_s, latency_s)

    def observe_dollars(self, agent: str, kinds: Floats, expected_usd: float, cost_usd: float) -> None:
        """What an attempt cost, and what the router had said, uncorrected; what is not positive is not known."""
        self._observe_scale(self._dollars, agent, kinds, expected_usd, cost_usd)

    def drift(self, agent: str) -> float:
        """How far the agent's detector is on its way to an alarm, 0..1; 0 for one without outcomes."""
        row = self._rows.get(agent, _NOBODY)
        return min(float(self._cusum[row].max()) / self.policy.alarm_at, 1.0)

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
            "doubt": self._doubt[rows].tolist(),
            "cusum": self._cusum[rows].tolist(),
            "since": self._since[rows].tolist(),
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
        rows = [made._row_for(agent) for agent in kept]
        chosen = [_NOBODY, *range(len(agents) - len(kept) + 1, len(agents) + 1)]
        for array, name in (
            (made._success.sums, "success"),
            (made._seconds.sums, "seconds"),
            (made._dollars.sums, "dollars"),
            (made._doubt, "doubt"),
            (made._cusum, "cusum"),
            (made._since, "since"),
        ):
            values = np.array(snapshot[name], np.float64)
            if values.shape != (len(agents) + 1, *array.shape[1:]):
                raise ValueError(f"{name} is of shape {values.shape} for {len(agents)} agents, {len(made.kinds)} kinds")
            array[[_NOBODY, *rows]] = values[chosen]
        made.observed = int(snapshot["observed"])
        made._detections.extend(Detection(**each) for each in snapshot["detections"])
        made._refresh_all()
        return made

    def _alarmed(self, row: int, surprise: float, fading: Doubles, added: Doubles) -> bool:
        """Feed the detector, and the evidence since each of its sides was 0."""
        since = self._since[row]
        since *= fading
        since += added
        highest = 0.0
        for side, signed in ((_UP, surprise), (_DOWN, -surprise)):
            reached = max(float(self._cusum[row, side]) + signed - self.policy.slack, 0.0)
            self._cusum[row, side] = reached
            highest = max(highest, reached)
            if reached == 0.0:
                since[side] = 0.0
        return highest > self.policy.alarm_at

    def _scaled(
        self, evidence: _Evidence, agents: Sequence[str], kinds: Floats, expected: Floats
    ) -> tuple[Floats, Floats]:
        shift, spread = evidence.read(self._rows_of(agents), _known(kinds))
        deviation = self.policy.scale_deviation * np.sqrt(spread)
        unknown = np.where(np.isnan(expected), np.nan, 0.0)
        return (expected * np.exp(shift)).astype(np.float32), (deviation + unknown).astype(np.float32)

    def _observe_scale(self, evidence: _Evidence, agent: str, kinds: Floats, expected: float, actual: float) -> None:
        if not (0.0 < expected < math.inf and 0.0 < actual < math.inf):
            return
        row, shares, limit = self._row_for(agent), _known(kinds), self.policy.scale_limit
        believed = evidence.shift_of(row, shares)
        pull = math.log(actual / expected) - believed
        evidence.add(row, shares, believed + min(max(pull, -limit), limit))
        evidence.refresh(row, self.policy.scale_strength, self.policy.scale_strength)

    def _rows_of(self, agents: Sequence[str]) -> npt.NDArray[np.intp]:
        """The rows of agents; those asked about last are kept, since a team is asked about again and again."""
        if agents is not self._asked[0] and tuple(agents) != self._asked[0]:
            rows = np.array([self._rows.get(agent, _NOBODY) for agent in agents], np.intp)
            self._asked = tuple(agents), rows
        return self._asked[1]

    def _row_for(self, agent: str) -> int:
        """The row of an agent that is observed now; the agent observed longest ago may have to make room."""
        row = self._rows.pop(agent, None)
        if row is None:
            self._asked = ((), np.zeros(0, np.intp))
            if len(self._rows) < self.policy.max_agents:
                row = len(self._rows) + 1
                if row == len(self._doubt):
                    self._grow()
            else:
                row = self._rows.pop(next(iter(self._rows)))
            for evidence in (self._success, self._seconds, self._dollars):
                evidence.sums[row] = 0.0
            self._cusum[row] = self._since[row] = 0.0
            self._doubt[row] = self._doubt[_NOBODY]
            self._rows[agent] = row
            self._refresh(row)
            for evidence in (self._seconds, self._dollars):
                evidence.refresh(row, self.policy.scale_strength, self.policy.scale_strength)
        self._rows[agent] = row
        return row

    def _grow(self) -> None:
        """Room for twice as many agents."""
        more = len(self._doubt)
        for evidence in (self._success, self._seconds, self._dollars):
            evidence.grow(more)
        self._doubt, self._cusum, self._since = (
            np.concatenate([array, np.zeros((more, *array.shape[1:]))])
            for array in (self._doubt, self._cusum, self._since)
        )

    def _refresh(self, row: int) -> None:
        rules, doubt = self.policy, float(self._doubt[row])
        agent = rules.agent_strength * (rules.doubted_agent_strength / rules.agent_strength) ** doubt
        kind = rules.kind_strength * (rules.doubted_kind_strength / rules.kind_strength) ** doubt
        self._success.refresh(row, agent, kind)

    def _refresh_all(self) -> None:
        for row in (_NOBODY, *self._rows.values()):
            self._refresh(row)
            for evidence in (self._seconds, self._dollars):
                evidence.refresh(row, self.policy.scale_strength, self.policy.scale_strength)


class _Evidence:
    """Decayed residuals of one quantity and the corrections that follow, ready to be read."""

    def __init__(self, n_rows: int, width: int, half_life: float) -> None:
        self._decay = 0.5 ** (1.0 / half_life)
        self.sums = np.zeros((n_rows, 2, width))  # [rows, weight and sum, overall and kinds]
        self._shift = np.zeros((n_rows, width))  # the agent's correction, and what a kind adds to it
        self._spread = np.zeros((n_rows, width))  # variance of each, in variances of one outcome

    def read(self, rows: npt.NDArray[np.intp], shares: Doubles) -> tuple[Doubles, Doubles]:
        """Corrections and their variances [tasks, agents]."""
        shift, spread = self._shift[rows], self._spread[rows]
        return (
            shares @ shift[:, 1:].T + shift[:, 0],
            (shares * shares) @ spread[:, 1:].T + spread[:, 0],
        )

    def shift_of(self, row: int, shares: Doubles) -> float:
        """The correction of one agent at one task."""
        shift = self._shift[row]
        return float(shares @ shift[1:] + shift[0])

    def add(self, row: int, shares: Doubles, residual: float) -> tuple[Doubles, Doubles]:
        """Take in one residual; gives what older evidence faded by [1 + kinds] and what was added [2, 1 + kinds]."""
        added = np.empty_like(self.sums[row])
        added[0, 0] = 1.0
        added[0, 1:] = shares
        fading: Doubles = self._decay ** added[0]
        added[1] = added[0] * residual
        sums = self.sums[row]
        sums *= fading
        sums += added
        return fading, added

    def refresh(self, row: int, agent_strength: float, kind_strength: float) -> None:
        """Work out the corrections of one agent anew."""
        weight, total = self.sums[row]
        bottom = weight + kind_strength
        bottom[0] += agent_strength - kind_strength
        mean = total[0] / bottom[0]
        shift, spread = self._shift[row], self._spread[row]
        np.divide(total - mean * weight, bottom, out=shift)
        shift[0] = mean
        np.divide(1.0, bottom, out=spread)

    def grow(self, more: int) -> None:
        """Append so many empty rows."""
        self.sums, self._shift, self._spread = (
            np.concatenate([array, np.zeros((more, *array.shape[1:]))])
            for array in (self.sums, self._shift, self._spread)
        )


def _known(kinds: Floats) -> Doubles:
    """Shares as numbers to reckon with; unknown ones are 0."""
    shares: Doubles = np.asarray(kinds, np.float64)
    return np.nan_to_num(shares) if np.isnan(shares).any() else shares
