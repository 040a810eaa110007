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
Numbers = npt.NDArray[np.floating]
Rows = npt.NDArray[np.intp]

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
        return self.corrected_success(agents, weights_of(kinds), success)

    def corrected_success(self, agents: Sequence[str], weights: Doubles, success: Floats) -> tuple[Floats, Floats]:
        """As `corrected`, by `weights_of` the kinds: who asks several posteriors about the same tasks has them once."""
        shift, spread = self._success.read(self._rows_of(agents), weights)
        better = _within(shift, success)
        spread *= better * (1.0 - better)
        return better.astype(np.float32), np.sqrt(spread, out=spread).astype(np.float32)

    def expected_success(self, agents: Sequence[str], weights: Doubles, success: Floats) -> Floats:
        """Of `corrected_success` the first."""
        return _within(self._success.shifts(self._rows_of(agents), weights), success).astype(np.float32)

    def expected_seconds(self, agents: Sequence[str], weights: Doubles, latency_s: Floats) -> Floats:
        """Of `corrected_seconds` the first, by `weights_of` the kinds."""
        return _times(latency_s, self._seconds.shifts(self._rows_of(agents), weights))

    def expected_dollars(self, agents: Sequence[str], weights: Doubles, cost_usd: Floats) -> Floats:
        """Of `corrected_dollars` the first, by `weights_of` the kinds."""
        return _times(cost_usd, self._dollars.shifts(self._rows_of(agents), weights))

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
        self.observe_all([agent], kinds[None], np.array([expected]), np.array([grade]))

    def revise(self, agent: str, kinds: Floats, change: float, since: Doubles) -> None:
        """An outcome that was observed is worth `change` more than was thought.

        `since` [1 + kinds] is the weight of the agent's outcomes after it: their number, and their shares of kinds.
        Whom nothing is known of any more, and evidence that was given up since, stays as it is.
        """
        row = self._rows.get(agent)
        if row is not None:
            self._success.revise(row, _known(kinds), change, since)
            self._refresh(np.array([row], np.intp))

    def observe_seconds(self, agent: str, kinds: Floats, expected_s: float, latency_s: float) -> None:
        """How long an attempt took, and what the router had said, uncorrected; what is not positive is not known."""
        self.observe_all_seconds([agent], kinds[None], np.array([expected_s]), np.array([latency_s]))

    def observe_dollars(self, agent: str, kinds: Floats, expected_usd: float, cost_usd: float) -> None:
        """What an attempt cost, and what the router had said, uncorrected; what is not positive is not known."""
        self.observe_all_dollars([agent], kinds[None], np.array([expected_usd]), np.array([cost_usd]))

    def observe_all(self, agents: Sequence[str], kinds: Floats, expected: Numbers, grades: Numbers) -> None:
        """Outcomes in the order in which they came, `kinds` [outcomes, kinds]; each as in `observe`.

        The evidence is the same as after one call for each. Only surprises differ, which are measured against what was
        believed before the first of them (or since the last alarm): give few at once.

        Raises:
            ValueError: an expectation or a grade is outside of 0..1; nothing was taken in.
        """
        known = ~(np.isnan(expected) | np.isnan(grades))
        values = np.stack([expected, grades]).astype(np.float64)[:, known]
        if not ((values >= 0.0) & (values <= 1.0)).all():
            at = int(np.flatnonzero(known)[np.flatnonzero(((values < 0.0) | (values > 1.0)).any(axis=0))[0]])
            raise ValueError(
                f"expected and grade of {agents[at]!r} must lie in 0..1, got {expected[at]!r} and {grades[at]!r}"
            )
        names = [agent for agent, is_known in zip(agents, known.tolist(), strict=True) if is_known]
        shares = _known(kinds[known])
        while names:
            some = slice(self.policy.max_agents)  # more agents than that would push each other out
            taken = self._take_in(names[some], shares[some], values[0, some], values[1, some])
            names, shares, values = names[taken:], shares[taken:], values[:, taken:]

    def observe_all_seconds(self, agents: Sequence[str], kinds: Floats, expected_s: Numbers, took_s: Numbers) -> None:
        """As `observe_seconds`, of several attempts."""
        self._observe_scale(self._seconds, agents, kinds, expected_s, took_s)

    def observe_all_dollars(self, agents: Sequence[str], kinds: Floats, expected_usd: Numbers, usd: Numbers) -> None:
        """As `observe_dollars`, of several attempts."""
        self._observe_scale(self._dollars, agents, kinds, expected_usd, usd)

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
        shift, spread = evidence.read(self._rows_of(agents), weights_of(kinds))
        deviation = self.policy.scale_deviation * np.sqrt(spread)
        deviation[np.isnan(expected)] = np.nan
        return _times(expected, shift), deviation.astype(np.float32)

    def _take_in(self, agents: list[str], shares: Doubles, expected: Doubles, grades: Doubles) -> int:
        """Take outcomes in until one of them gives an alarm; gives how many they were."""
        rules = self.policy
        rows = self._rows_for(agents)
        believed = np.clip(expected + self._success.shifts_of(rows, shares), *PROBABLE)
        surprise = (grades - believed) / np.sqrt(np.maximum(believed * (1.0 - believed), _LEAST_VARIANCE))
        surprise = np.clip(surprise, -rules.surprise_limit, rules.surprise_limit)
        cleared: tuple[dict[int, int], dict[int, int]] = {}, {}  # of each side: row -> the last place where it was 0
        taken, alarm = len(agents), False
        for place, (row, above) in enumerate(zip(rows.tolist(), surprise.tolist(), strict=True)):
            self._wear_off(row)
            sides = self._cusum[row]
            for side, signed in ((_UP, above), (_DOWN, -above)):
                sides[side] = max(sides[side] + signed - rules.slack, 0.0)
                if sides[side] == 0.0:
                    cleared[side][row] = place
            if max(sides) > rules.alarm_at:
                taken, alarm = place + 1, True
                break
        residuals = grades - expected
        touched = self._success.add_all(rows[:taken], shares[:taken], residuals[:taken], cleared)
        self.observed += taken
        if alarm:
            row = int(rows[taken - 1])
            sides = self._cusum[row]
            self._alarm(agents[taken - 1], row, _UP if sides[_UP] > sides[_DOWN] else _DOWN)
        else:
            self._refresh(touched)
        return taken

    def _observe_scale(
        self, evidence: _Evidence, agents: Sequence[str], kinds: Floats, expected: Numbers, actual: Numbers
    ) -> None:
        known = np.flatnonzero((expected > 0.0) & (expected < math.inf) & (actual > 0.0) & (actual < math.inf))
        limit = self.policy.scale_limit
        for first in range(0, len(known), self.policy.max_agents):  # more agents would push each other out
            some = known[first : first + self.policy.max_agents]
            rows, shares = self._rows_for([agents[place] for place in some.tolist()]), _known(kinds[some])
            believed = evidence.shifts_of(rows, shares)
            pull = np.log(actual[some] / expected[some]) - believed
            touched = evidence.add_all(rows, shares, believed + np.clip(pull, -limit, limit))
            evidence.refresh(touched, self._scales)

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

    def _rows_for(self, agents: Sequence[str]) -> Rows:
        """The rows of agents that are observed now, in this order."""
        places = {agent: self._row_for(agent) for agent in dict.fromkeys(agents)}
        return np.array([places[agent] for agent in agents], np.intp)

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
        self._refresh_all(np.array([row], np.intp))
        return row

    def _wear_off(self, row: int) -> None:
        doubt = self._doubt[row] * self._calming
        self._doubt[row] = doubt if doubt > _SETTLED else 0.0

    def _refresh(self, rows: Rows) -> None:
        rules = self.policy
        doubt = [self._doubt[row] for row in rows.tolist()]
        if not any(doubt):
            self._success.refresh(rows, self._calm)
            return
        believed = np.array(doubt)[:, None]
        strengths = np.repeat(
            rules.kind_strength * (rules.doubted_kind_strength / rules.kind_strength) ** believed,
            len(self._calm),
            axis=1,
        )
        strengths[:, :1] = rules.agent_strength * (rules.doubted_agent_strength / rules.agent_strength) ** believed
        self._success.refresh(rows, strengths)

    def _refresh_all(self, rows: Rows | None = None) -> None:
        """Of these rows, or of all that there are."""
        if rows is None:
            rows = np.arange(len(self._doubt))
        self._refresh(rows)
        self._seconds.refresh(rows, self._scales)
        self._dollars.refresh(rows, self._scales)


class _Evidence:
    """Decayed residuals of one quantity and the corrections that follow, ready to be read.

    Of its parts the first is all evidence; the others are the same since each side of a detector was 0.
    """

    def __init__(self, width: int, half_life: float, n_parts: int = 1) -> None:
        self._fading = math.log(0.5) / half_life  # of the logarithm of what is kept, with each outcome
        self.sums = np.zeros((1, n_parts, 2, width))  # [rows, parts, weight and sum, overall and kinds]
        self._read = np.zeros((1, 2, width))  # [rows, correction and variance of the agent, and what a kind adds]

    def read(self, rows: Rows, weights: Doubles) -> tuple[Doubles, Doubles]:
        """Corrections, and their variances in variances of one outcome: [tasks, agents] each.

        `weights` [tasks, 1 + kinds] are `_weights` of the tasks.
        """
        found = self._read[rows]  # [agents, 2, 1 + kinds]
        return np.dot(weights, found[:, 0].T), np.dot(weights * weights, found[:, 1].T)

    def shifts(self, rows: Rows, weights: Doubles) -> Doubles:
        """Of `read` the corrections."""
        shifts: Doubles = np.dot(weights, self._read[rows, 0].T)
        return shifts

    def shifts_of(self, rows: Rows, shares: Doubles) -> Doubles:
        """The corrections of one agent each at one task each: `rows` [tasks], `shares` [tasks, kinds]."""
        shift = self._read[rows, 0]
        added: Doubles = np.einsum("tk,tk->t", shares, shift[:, 1:])
        added += shift[:, 0]
        return added

    def add_all(
        self, rows: Rows, shares: Doubles, residuals: Doubles, cleared: Sequence[Mapping[int, int]] = ()
    ) -> Rows:
        """Take residuals in, one after another: all that is older fades. Gives the rows that changed.

        `cleared` has for each further part the last places at which rows had to begin anew: what came until then and
        with it is left out of that part.
        """
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        first = np.flatnonzero(np.diff(sorted_rows, prepend=-1))  # where each agent's begin
        touched = sorted_rows[first]
        of_agent = np.repeat(np.arange(len(first)), np.diff(first, append=len(rows)))
        weights = _weights(shares[order])
        so_far = np.cumsum(weights, axis=0)
        last = np.append(first[1:], len(rows)) - 1
        added = np.empty((len(rows), 2, weights.shape[1]))  # of each outcome, when the last one of its agent is in
        np.multiply(weights, np.exp(self._fading * (so_far[last][of_agent] - so_far)), out=added[:, 0])
        np.multiply(added[:, 0], residuals[order, None], out=added[:, 1])
        sums = self.sums[touched]  # [agents, parts, 2, overall and kinds]
        sums *= np.exp(self._fading * np.add.reduceat(weights, first))[:, None, None]
        whole = np.add.reduceat(added, first)
        sums[:, 0] += whole
        for part, begun in enumerate(cleared, start=1):
            since = np.array([begun.get(row, -1) for row in touched.tolist()])
            sums[since >= 0, part] = 0.0
            if (since < 0).all():
                sums[:, part] += whole
            else:
                counted = order > since[of_agent]
                sums[:, part] += np.add.reduceat(added * counted[:, None, None], first)
        self.sums[touched] = sums
        return touched

    def revise(self, row: int, shares: Doubles, change: float, since: Doubles) -> None:
        """Change one residual that was taken in before outcomes of weight `since`, in the parts that still have it."""
        weight = np.ones(1 + len(shares))
        weight[1:] = shares
        # Undecayed, a part that has it holds at least since + 1 outcomes; these are what so many have faded to.
        least = math.expm1(self._fading * (since[0] + 1.0)) / math.expm1(self._fading)
        holding = self.sums[row, :, 0, 0] >= least * (1.0 - 1e-9)
        self.sums[row, holding, 1] += weight * change * np.exp(self._fading * since)

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

    def refresh(self, rows: Rows, strengths: Doubles) -> None:
        """Work out the corrections of some agents anew; `strengths` are the same for all, or [agents, strengths]."""
        weight, total = self.sums[rows, 0, 0], self.sums[rows, 0, 1]
        variance = 1.0 / (weight + strengths)
        mean = total[:, :1] * variance[:, :1]
        shift = (total - mean * weight) * variance
        shift[:, :1] = mean
        self._read[rows, 0] = shift
        self._read[rows, 1] = variance


def _strengths(width: int, agent: float, kind: float) -> Doubles:
    """[overall and kinds] by what means are shrunk."""
    strengths = np.full(width, kind)
    strengths[0] = agent
    return strengths


def weights_of(kinds: Floats) -> Doubles:
    """[tasks, overall and kinds] what an agent's corrections count at tasks of these shares [tasks, kinds]."""
    return _weights(_known(kinds))


def _within(shift: Doubles, success: Floats) -> Doubles:
    """`success` and `shift` together, in its place: still a probability."""
    shift += success
    low, high = np.minimum(success, PROBABLE[0]), np.maximum(success, PROBABLE[1])
    better: Doubles = np.minimum(np.maximum(shift, low, out=shift), high, out=shift)
    return better


def _times(expected: Floats, shift: Doubles) -> Floats:
    scaled: Floats = (expected * np.exp(shift)).astype(np.float32)
    return scaled


def _weights(shares: Doubles) -> Doubles:
    """[tasks, overall and kinds] how much each correction counts; `shares` [tasks, kinds]."""
    weights = np.empty((len(shares), shares.shape[1] + 1))
    weights[:, 0] = 1.0
    weights[:, 1:] = shares
    return weights


def _known(kinds: Floats) -> Doubles:
    """Shares as numbers to reckon with; unknown ones are 0."""
    shares = kinds.astype(np.float64)
    flat = shares.ravel()
    return shares if math.isfinite(np.dot(flat, flat)) else np.nan_to_num(shares)
