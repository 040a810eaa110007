"""What agents' pasts say about a new task: regression over like tasks, fitted in closed form when a history is read.

No weight is trained, so it works for agents and kinds of tasks never seen before. Three questions are answered one
after the other, each by a Gaussian process over past tasks (`flowray.routing.kernels`):

1. What kind of task is it? Where past tasks were said to be of some kind (`Histories.kinds`), from traits and sense.
2. How does each agent fare? The residuals of the past, r[t, a] = success[t, a] - prior[a], over traits and the kind as
   guessed in 1, and over the sense of the text where that helps. Seconds and dollars alike, as logarithms.
3. What if somebody already tried this very task? Agents fail together: the covariance of what 2 leaves unexplained
   says what one attempt means for the others (`conditioned`).

Of the past itself everything is predicted without the task in question (leave-one-out), the kinds too. That is what a
network may be trained on, and what trust is measured by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats, Histories, Outcomes
from flowray.routing.kernels import Basis, Doubles, Numbers, Space, bound

LANDMARKS = 1_024  # past tasks that the kernel of traits is spanned by, half as many that of sense
MAX_PAST = 20_000  # past tasks that are read: the newest
MAX_KINDS = 64  # the most frequent ones
LEAST_OF_KIND = 3  # past tasks
PROBABLE = (0.02, 0.98)  # bounds of a probability that rests on like tasks alone
_WIDTHS = (0.25, 0.5, 1.0, 2.0)  # of the kernels of traits, tried in turn
_TRIAL_LANDMARKS = 256  # that a width is tried with
_SENSE_WIDTH = 0.3  # of vectors of length 1
_SENSE_SCALE = 0.6  # standard deviation of what sense adds, in units of what traits do
_WORTHWHILE = 0.998  # of the error without sense that must be left with it: it costs time
_SHARPNESS = 2.0  # power that guessed kinds are raised to: regression on labels is timid
_MEDIAN_STRENGTH = 16.0  # attempts by which an agent's median is pulled to that of all
_PRIOR_STRENGTH = 4.0  # attempts; an agent with fewer is taken for like the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What the likeness of tasks is judged by."""

    traits: Floats  # [tasks, traits]
    sense: Floats  # [tasks, width] unit vectors of what the text is about, 0 where that is unknown; the width may be 0

    def __len__(self) -> int:
        return len(self.traits)

    def take(self, rows: npt.NDArray[np.intp] | slice) -> Views:
        """Some of the tasks."""
        return Views(traits=self.traits[rows], sense=self.sense[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """What like tasks say of each agent."""

    success: Floats  # [tasks, agents] in (0, 1)
    log_latency: Floats  # [tasks, agents] median of the logarithm of seconds, NaN where no agent's are known
    log_cost: Floats  # [tasks, agents] of dollars, NaN where none of this agent's are known
    familiarity: Floats  # [tasks] 0..1, how like the most alike past task is; 0 without a past
    kinds: Floats  # [tasks, kinds] probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """One quantity: prior[a] + likeness to landmarks @ weights[:, a]."""

    prior: Floats  # [agents]
    weights: Floats  # [landmarks, agents]
    loo: Floats  # [past tasks, agents] leave-one-out, prior included


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kinds:
    """A guess of what kind a task is."""

    labels: tuple[str, ...]
    space: Space
    share: Floats  # [kinds] of the past
    weights: Floats  # [landmarks of traits and sense, kinds]

    def guess(self, traits: Floats, sense_likeness: Floats) -> Floats:
        """[tasks, kinds] probabilities."""
        likeness = np.hstack([self.space.likeness(traits), sense_likeness])
        return _sharpened(self.share + likeness @ self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sensed:
    """The past in the space of texts."""

    space: Space | None
    whitening: Floats  # [landmarks, landmarks]
    features: Floats  # [past, landmarks]

    @classmethod
    def of(cls, sense: Floats, landmarks: Numbers) -> _Sensed:
        if not sense.any():
            return cls(
                space=None, whitening=np.zeros((0, 0), np.float32), features=np.zeros((len(sense), 0), np.float32)
            )
        space = Space.plain(sense, landmarks, _SENSE_WIDTH)
        whitening = np.float32(_SENSE_SCALE) * space.whitening()
        return cls(space=space, whitening=whitening, features=space.likeness(sense) @ whitening)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The past of some agents, ready to be asked."""

    kinds: _Kinds | None  # None where no past task was said to be of a kind, or all were of one
    sense: Space | None  # None where texts are not read
    space: Space  # of traits and kinds
    uses_sense: bool  # besides, for agents
    success: _Fit
    log_latency: _Fit
    log_cost: _Fit
    count: Floats  # [agents] past attempts
    covariance: Doubles  # [agents, agents] of the residuals that remain

    @classmethod
    def of(
        cls,
        views: Views,
        outcomes: Outcomes,
        kinds: Sequence[str] = (),
        *,
        n_landmarks: int = LANDMARKS,
        seed: int = 0,
    ) -> Memory:
        """Fit to past tasks, oldest first. None at all is fine: then everything is the prior.

        `kinds` [tasks] says what kind of task each was, "" where nobody did. Fewer landmarks are quicker and coarser.
        """
        views, kinds = views.take(slice(-MAX_PAST, None)), kinds[-MAX_PAST:]
        outcomes = outcomes.take(slice(-MAX_PAST, None))
        success = outcomes.success
        with np.errstate(divide="ignore", invalid="ignore"):
            latency = np.log(np.where(outcomes.latency_s > 0, outcomes.latency_s, np.nan))
            cost = np.log(np.where(outcomes.cost_usd > 0, outcomes.cost_usd, np.nan))
        order = np.random.default_rng(seed).permutation(len(views))
        landmarks = np.sort(order[:n_landmarks])
        sensed = _Sensed.of(views.sense, np.sort(order[: n_landmarks // 2]))
        guess, guessed = _kinds_of(views.traits, kinds, landmarks, sensed)
        target, prior, known = _residuals(success, 0.5)
        space, whitening, features = _best_space(np.hstack([views.traits, np.sqrt(guessed)]), target, landmarks)
        basis, uses_sense = Basis.of(features), False
        if sensed.space is not None:
            with_sense = Basis.of(np.hstack([features, sensed.features]))
            uses_sense = with_sense.error(target) < _WORTHWHILE * basis.error(target)
            if uses_sense:
                basis, whitening = with_sense, _block(whitening, sensed.whitening)
        fits = [
            _fit(basis, whitening, residuals, prior, known)
            for residuals, prior, known in (
                (target, prior, known),
                _residuals(latency, np.nan),
                _residuals(cost, np.nan, apart=True),
            )
        ]
        fits[1] = _centred(fits[1], latency)
        remaining = np.where(known, success - np.clip(fits[0].loo, *PROBABLE), 0.0).astype(np.float64)
        together = known.astype(np.float64).T @ known
        return cls(
            kinds=guess,
            sense=sensed.space,
            space=space,
            uses_sense=uses_sense,
            success=fits[0],
            log_latency=fits[1],
            log_cost=fits[2],
            count=known.sum(axis=0).astype(np.float32),
            covariance=remaining.T @ remaining / np.maximum(together, 1.0),
        )

    @property
    def n_agents(self) -> int:
        return len(self.count)

    @cached_property
    def _together(self) -> tuple[Floats, Floats]:
        """[3 agents] priors and [landmarks, 3 agents] weights of all three quantities, side by side."""
        fits = (self.success, self.log_latency, self.log_cost)
        return np.concatenate([fit.prior for fit in fits]), np.concatenate([fit.weights for fit in fits], axis=1)

    def recall(self, views: Views) -> Recalled:
        """What to expect at some tasks."""
        none = np.zeros((len(views), 0), np.float32)
        alike = self.sense.likeness(views.sense) if self.sense is not None else none
        kinds = self.kinds.guess(views.traits, alike) if self.kinds is not None else none
        likeness = self.space.likeness(np.hstack([views.traits, np.sqrt(kinds)]))
        familiarity = likeness.max(axis=1, initial=0.0)
        if self.uses_sense:
            likeness = np.hstack([likeness, alike])
        prior, weights = self._together
        values, n_agents = likeness @ weights, self.n_agents
        values += prior
        success, log_latency, log_cost = (values[:, at : at + n_agents] for at in (0, n_agents, 2 * n_agents))
        return Recalled(
            success=bound(success, *PROBABLE),
            log_latency=log_latency,
            log_cost=log_cost,
            familiarity=familiarity,
            kinds=kinds,
        )

    def recalled_past(self) -> Floats:
        """[past tasks, agents] success as it would have been recalled without the task itself."""
        return np.clip(self.success.loo, *PROBABLE)

    def conditioned(self, success: Floats, attempts: Floats) -> Floats:
        """[tasks, agents] the probabilities `success` given that some agents tried these tasks before.

        `attempts` holds 1 or 0 where one did, else NaN. The best linear correction under the residuals' covariance;
        what an agent did itself counts for it as much as noise of half its variance allows.
        """
        corrected = success.astype(np.float64).copy()
        tried = np.isfinite(attempts)
        variances = np.diagonal(self.covariance)
        for row in np.flatnonzero(tried.any(axis=1)):
            by = np.flatnonzero(tried[row])
            observed = self.covariance[np.ix_(by, by)] + np.diag(0.5 * variances[by] + 1e-3)
            surprise = attempts[row, by] - success[row, by]
            corrected[row] += self.covariance[:, by] @ np.linalg.solve(observed, surprise)
        return np.clip(corrected, 0.01, 0.99).astype(np.float32)


def recent(histories: Histories) -> Histories:
    """The past that a memory reads."""
    return histories if len(histories.tasks) <= MAX_PAST else histories.take(slice(-MAX_PAST, None))


def _kinds_of(
    traits: Floats, kinds: Sequence[str], landmarks: Numbers, sensed: _Sensed
) -> tuple[_Kinds | None, Floats]:
    """The guess of kinds, and what it says of the past, each task without itself [past, kinds]."""
    often = [kind for kind, count in Counter(filter(None, kinds)).most_common(MAX_KINDS) if count >= LEAST_OF_KIND]
    if len(often) < 2:
        return None, np.zeros((len(traits), 0), np.float32)
    place = {kind: at for at, kind in enumerate(sorted(often))}
    said = np.array([place.get(kind, -1) for kind in kinds])
    labelled = np.flatnonzero(said >= 0)
    share = np.bincount(said[labelled], minlength=len(place)) / len(labelled)
    target = np.zeros((len(traits), len(place)))
    target[labelled] = np.eye(len(place))[said[labelled]] - share
    space, whitening, features = _best_space(traits, target, landmarks)
    weights, loo = Basis.of(np.hstack([features, sensed.features])).fit(target)
    weights = _block(whitening, sensed.whitening) @ weights
    kept = _Kinds(labels=tuple(place), space=space, share=share.astype(np.float32), weights=weights.astype(np.float32))
    return kept, _sharpened(share + loo)


def _best_space(values: Floats, target: Doubles, landmarks: Numbers) -> tuple[Space, Floats, Floats]:
    """The space of the width that predicts the target best, its whitening, and its features of the past."""
    space = Space.of(values, target, landmarks)
    every = max(len(landmarks) // _TRIAL_LANDMARKS, 1)
    errors = []
    for width in _WIDTHS:
        trial = space.with_width(width, every)
        errors.append(Basis.of(trial.likeness(values) @ trial.whitening()).error(target))
    space = space.with_width(_WIDTHS[int(np.argmin(errors))])
    whitening = space.whitening()
    return space, whitening, space.likeness(values) @ whitening


def _fit(basis: Basis, whitening: Floats, residuals: Doubles, prior: Floats, known: npt.NDArray[np.bool_]) -> _Fit:
    """Fit residuals; where an agent has no outcome, what the fit itself expects stands in (two rounds of EM)."""
    n_agents = residuals.shape[1]
    weights = np.zeros((len(basis.values), n_agents))
    loo = np.zeros_like(residuals)
    if known.any():
        for _ in range(1 if known.all() else 3):
            weights, loo = basis.fit(residuals)
            residuals = np.where(known, residuals, loo)
    return _Fit(prior=prior, weights=(whitening @ weights).astype(np.float32), loo=(prior + loo).astype(np.float32))


def _centred(fit: _Fit, values: Floats) -> _Fit:
    """The fit moved, for each agent, from the mean to the median of what it expects.

    Seconds have a tail of quick failures, which draws the mean of their logarithms away from what is usual.
    """
    missed = np.where(np.isfinite(values), values - fit.loo, np.nan)
    if not np.isfinite(missed).any():
        return fit
    overall = np.nanmedian(missed)
    count = np.isfinite(missed).sum(axis=0)
    own = np.array([np.nanmedian(column) if n else overall for column, n in zip(missed.T, count, strict=True)])
    shift = ((count * own + _MEDIAN_STRENGTH * overall) / (count + _MEDIAN_STRENGTH)).astype(np.float32)
    return replace(fit, prior=fit.prior + shift, loo=fit.loo + shift)


def _residuals(values: Floats, unknown: float, *, apart: bool = False) -> tuple[Doubles, Floats, npt.NDArray[np.bool_]]:
    """What is left of each value after its agent's mean, that mean, and where there is a value at all.

    The mean is shrunk towards that of all agents, or with `apart` is the agent's own and NaN where it has none.
    """
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mean = total.sum() / count.sum() if count.sum() else unknown
        prior = total / np.where(count, count, np.nan) if apart else None
    if prior is None:
        prior = (total + _PRIOR_STRENGTH * mean) / (count + _PRIOR_STRENGTH)
    residuals = np.where(known, values - prior, 0.0)
    return residuals.astype(np.float64), prior.astype(np.float32), known


def _sharpened(guess: npt.NDArray[np.floating]) -> Floats:
    """Guesses of regression as probabilities [tasks, kinds]."""
    powered = np.maximum(guess, 1e-3) ** _SHARPNESS
    shares: Floats = (powered / powered.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def _block(one: Floats, other: Floats) -> Floats:
    """Both matrices as blocks of one."""
    whole = np.zeros((one.shape[0] + other.shape[0], one.shape[1] + other.shape[1]), np.float32)
    whole[: one.shape[0], : one.shape[1]] = one
    whole[one.shape[0] :, one.shape[1] :] = other
    return whole
