"""What agents' pasts say about a new task: regression over like tasks, fitted in closed form when a history is read.

No weight is trained, so it works for agents and kinds of tasks never seen before. The residuals of the past,
r[t, a] = success[t, a] - prior[a], are a Gaussian process over the tasks' traits (Rasmussen & Williams 2006, ch. 2
and 5) with a squared exponential kernel, on at most `LANDMARKS` tasks (Nystrom). Agents fail together: their residuals
are turned into the eigenvectors of their covariance, the noise of each is chosen by leave-one-out error, and directions
that predict nothing are dropped. That is what keeps the best of seventy agents from being the luckiest one. Seconds and
dollars are fitted alike, as logarithms.

Leave-one-out predictions of the past come from the same decomposition,

    r_loo[t] = r[t] - (r[t] - fit[t]) / (1 - H[t, t]),

and are what a network may be trained on. When somebody already tried this very task, the residuals' covariance says
what that means for the others (`conditioned`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats, Histories, Outcomes

LANDMARKS = 1_024  # past tasks that the kernel is spanned by
MAX_PAST = 20_000  # past tasks that are read: the newest
PROBABLE = (0.02, 0.98)  # bounds of a probability that rests on like tasks alone
_WIDTHS = (
    0.5,
    1.0,
    2.0,
)  # of the kernel, tried in turn: squared distance per trait at which likeness falls to exp(-1/2)
_NOISES = np.array([0.3, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 150, 300, 1000], np.float64)
_TRAIT_BOUND = 4.0  # standard deviations beyond which a trait counts no further
_BINS = 8  # of a trait's values, to see what it explains
_PRIOR_STRENGTH = 4.0  # attempts; an agent with fewer is taken for like the others
_ROTATED_AGENTS = 256  # beyond that many, agents are fitted one by one

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """What like tasks say of each agent."""

    success: Floats  # [tasks, agents] in (0, 1)
    log_latency: Floats  # [tasks, agents] of seconds, NaN where no agent's are known
    log_cost: Floats  # [tasks, agents] of dollars, NaN where none of this agent's are known
    familiarity: Floats  # [tasks] 0..1, how like the most alike past task is; 0 without a past


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """One quantity: prior[a] + likeness to landmarks @ weights[:, a]."""

    prior: Floats  # [agents]
    weights: Floats  # [landmarks, agents]
    loo: Floats  # [past tasks, agents] leave-one-out, prior included


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The past of some agents, ready to be asked."""

    centre: Floats  # [traits]
    scale: Floats  # [traits]
    bound: Floats  # [traits] where a scaled trait counts no further
    landmarks: Floats  # [landmarks, traits] standardised
    width: float
    success: _Fit
    log_latency: _Fit
    log_cost: _Fit
    count: Floats  # [agents] past attempts
    covariance: Doubles  # [agents, agents] of the residuals that remain

    @classmethod
    def of(cls, traits: Floats, outcomes: Outcomes, seed: int = 0) -> Memory:
        """Fit to past tasks, oldest first. None at all is fine: then everything is the prior."""
        traits = traits[-MAX_PAST:]
        rows = np.arange(len(outcomes.success))[-MAX_PAST:]
        success = outcomes.success[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            latency = np.log(np.where(outcomes.latency_s[rows] > 0, outcomes.latency_s[rows], np.nan))
            cost = np.log(np.where(outcomes.cost_usd[rows] > 0, outcomes.cost_usd[rows], np.nan))
        n_past, n_traits = traits.shape
        centre = traits.mean(axis=0) if n_past else np.zeros(n_traits, np.float32)
        deviation = traits.std(axis=0) if n_past else np.ones(n_traits, np.float32)
        target, prior, known = _residuals(success, 0.5)
        weight = np.where(deviation > 1e-4, _relevance(traits, target), 0.0)  # a constant trait says nothing
        weight = weight / max(float(np.sqrt((weight**2).sum())), 1e-9)
        scale = (weight / np.maximum(deviation, 1e-4)).astype(np.float32)
        bound = (_TRAIT_BOUND * weight).astype(np.float32)
        standard = _standardised(traits, centre, scale, bound)
        chosen = np.sort(np.random.default_rng(seed).permutation(n_past)[:LANDMARKS])
        landmarks = standard[chosen]
        best: tuple[float, float, Floats, _Basis] | None = None
        for width in _WIDTHS:
            whitening = _whitening(landmarks, width)
            basis = _Basis.of(_kernel(standard, landmarks, width) @ whitening)
            error = basis.error(target)
            if best is None or error < best[0]:
                best = error, width, whitening, basis
        assert best is not None
        _, width, whitening, basis = best
        fits = [
            _fit(basis, whitening, residuals, prior, known)
            for residuals, prior, known in (
                (target, prior, known),
                _residuals(latency, np.nan),
                _residuals(cost, np.nan, apart=True),
            )
        ]
        remaining = np.where(known, success - np.clip(fits[0].loo, *PROBABLE), 0.0).astype(np.float64)
        together = known.astype(np.float64).T @ known
        return cls(
            centre=centre,
            scale=scale,
            bound=bound,
            landmarks=landmarks,
            width=width,
            success=fits[0],
            log_latency=fits[1],
            log_cost=fits[2],
            count=known.sum(axis=0).astype(np.float32),
            covariance=remaining.T @ remaining / np.maximum(together, 1.0),
        )

    @property
    def n_agents(self) -> int:
        return len(self.count)

    def recall(self, traits: Floats) -> Recalled:
        """What to expect at tasks with these `traits` [tasks, traits]."""
        likeness = _kernel(_standardised(traits, self.centre, self.scale, self.bound), self.landmarks, self.width)
        return Recalled(
            success=np.clip(self.success.prior + likeness @ self.success.weights, *PROBABLE),
            log_latency=self.log_latency.prior + likeness @ self.log_latency.weights,
            log_cost=self.log_cost.prior + likeness @ self.log_cost.weights,
            familiarity=likeness.max(axis=1, initial=0.0),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Basis:
    """The eigenvectors of the features' second moment: every noise is tried at the cost of a product."""

    values: Doubles  # [landmarks]
    vectors: Doubles  # [landmarks, landmarks]
    rotated: Doubles  # [past, landmarks] features @ vectors
    leverage: Doubles  # [noises, past] diagonal of the hat matrix

    @classmethod
    def of(cls, features: Floats) -> _Basis:
        wide = features.astype(np.float64)
        values, vectors = np.linalg.eigh(wide.T @ wide)
        values = np.maximum(values, 0.0)
        rotated = wide @ vectors
        leverage = (1.0 / (values + _NOISES[:, None])) @ (rotated**2).T
        return cls(values=values, vectors=vectors, rotated=rotated, leverage=np.minimum(leverage, 0.999))

    def best_noise(self, targets: Doubles) -> tuple[npt.NDArray[np.intp], Doubles, Doubles]:
        """Of each column the number of the best noise, its leave-one-out squared error, and that of predicting 0."""
        errors = np.empty((len(_NOISES), targets.shape[1]))
        moments = self.rotated.T @ targets
        for number, noise in enumerate(_NOISES):
            fitted = self.rotated @ (moments / (self.values + noise)[:, None])
            errors[number] = (((targets - fitted) / (1 - self.leverage[number])[:, None]) ** 2).sum(axis=0)
        best = errors.argmin(axis=0)
        return best, errors[best, np.arange(len(best))], (targets**2).sum(axis=0)

    def error(self, targets: Doubles) -> float:
        _, errors, nothing = self.best_noise(_rotation(targets)[0])
        return float(np.minimum(errors, nothing).sum())

    def solve(self, targets: Doubles, noises: npt.NDArray[np.intp]) -> tuple[Doubles, Doubles]:
        """Weights [landmarks, columns] and leave-one-out predictions [past, columns]."""
        inner = (self.rotated.T @ targets) / (self.values[:, None] + _NOISES[noises])
        fitted = self.rotated @ inner
        loo = targets - (targets - fitted) / (1 - self.leverage[noises].T)
        return self.vectors @ inner, loo


def _fit(basis: _Basis, whitening: Floats, residuals: Doubles, prior: Floats, known: npt.NDArray[np.bool_]) -> _Fit:
    """Fit residuals; where an agent has no outcome, what the fit itself expects stands in (two rounds of EM)."""
    n_agents = residuals.shape[1]
    weights = np.zeros((len(basis.values), n_agents))
    loo = np.zeros_like(residuals)
    if known.any():
        complete = bool(known.all())
        for _ in range(1 if complete else 3):
            rotated, turn = _rotation(residuals)
            noises, errors, nothing = basis.best_noise(rotated)
            inner, inner_loo = basis.solve(rotated, noises)
            useful = errors < nothing  # directions in which the past predicts nothing are dropped
            weights, loo = (inner * useful) @ turn.T, (inner_loo * useful) @ turn.T
            residuals = np.where(known, residuals, loo)
    return _Fit(prior=prior, weights=(whitening @ weights).astype(np.float32), loo=(prior + loo).astype(np.float32))


def _rotation(residuals: Doubles) -> tuple[Doubles, Doubles]:
    """Residuals in the agents' principal directions, and these directions as columns."""
    if residuals.shape[1] > _ROTATED_AGENTS:
        return residuals, np.eye(residuals.shape[1])
    _, turn = np.linalg.eigh(residuals.T @ residuals)
    return residuals @ turn, turn


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


def _relevance(traits: Floats, residuals: Doubles) -> Doubles:
    """[traits] how much each trait counts in likeness: the fourth root of the variance that it explains alone.

    The root is low because what a trait explains together with others is not seen here; its floor keeps all in.
    """
    total = max(float((residuals**2).sum()), 1e-12)
    explained = np.zeros(traits.shape[1])
    for number, trait in enumerate(traits.T if len(traits) else ()):
        cuts = np.unique(np.quantile(trait, np.arange(1, _BINS) / _BINS))
        bins = np.searchsorted(cuts, trait, side="right")
        member = np.zeros((len(cuts) + 1, len(trait)))
        member[bins, np.arange(len(trait))] = 1.0
        count = np.maximum(member.sum(axis=1), 1.0)
        by_chance = len(cuts) / len(trait)
        explained[number] = max(float(((member @ residuals) ** 2 / count[:, None]).sum()) / total - by_chance, 0.0)
    return (explained + 1e-4) ** 0.25


def _standardised(traits: Floats, centre: Floats, scale: Floats, bound: Floats) -> Floats:
    """Traits such that the squared distance of two tasks is a weighted mean over traits."""
    standard: Floats = np.clip((traits - centre) * scale, -bound, bound).astype(np.float32)
    return standard


def _kernel(tasks: Floats, landmarks: Floats, width: float) -> Floats:
    """[tasks, landmarks] likeness, 0..1."""
    squares = (tasks**2).sum(axis=1)[:, None] + (landmarks**2).sum(axis=1) - 2.0 * tasks @ landmarks.T
    likeness: Floats = np.exp(np.maximum(squares, 0.0) * (-0.5 / width)).astype(np.float32)
    return likeness


def _whitening(landmarks: Floats, width: float) -> Floats:
    """[landmarks, landmarks] W with W W' = the landmarks' inverse kernel: features of unit prior variance."""
    if not len(landmarks):
        return np.zeros((0, 0), np.float32)
    kernel = _kernel(landmarks, landmarks, width).astype(np.float64)
    values, vectors = np.linalg.eigh(kernel)
    whitening: Floats = (vectors / np.sqrt(np.maximum(values, 1e-4))).astype(np.float32)
    return whitening
