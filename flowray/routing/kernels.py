"""Regression over like things, in closed form: kernels on landmarks, and ridge with exact leave-one-out.

A Gaussian process (Rasmussen & Williams 2006, ch. 2 and 5) with a squared exponential kernel k is spanned by at most so
many landmarks (Nystrom): with K the landmarks' own kernel and W W' = K^-1, the features k(x) W have unit prior variance
and a ridge on them is the process. From one eigendecomposition of the features' second moment every noise is solved at
the cost of a product, and so are the predictions of each row by all others,

    loo[t] = y[t] - (y[t] - fit[t]) / (1 - H[t, t]),        H the hat matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats

NOISES = np.array([0.3, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 150, 300, 1000], np.float64)
_COLUMN_BOUND = 4.0  # standard deviations beyond which a number counts no further
_BINS = 8  # of a column's values, to see what it explains
_ROTATED = 256  # targets; beyond that many they are fitted one by one

Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A space of numbers in which near means alike: scaled columns, landmarks, and how near is near.

    Likeness is exp(-|x - l|^2 / 2w) = exp((x l - x x / 2 - l l / 2) / w), so a question costs one product.
    """

    centre: Floats  # [columns]
    scale: Floats  # [columns] 0 for a column that says nothing
    bound: Floats  # [columns] where a scaled column counts no further
    landmarks: Floats  # [landmarks, columns] scaled
    width: float  # w: squared distance at which likeness falls to exp(-1/2)
    halves: Floats  # [landmarks] l l / 2w
    turned: Floats  # [columns, landmarks] the landmarks as columns, over w: for fast products
    as_it_is: bool  # columns are not scaled

    @classmethod
    def of(cls, values: Floats, targets: Doubles, landmarks: Numbers) -> Space:
        """The space of past `values` [past, columns], each column scaled by what it says of `targets` [past, any]."""
        n_past, n_columns = values.shape
        centre = values.mean(axis=0) if n_past else np.zeros(n_columns, np.float32)
        deviation = values.std(axis=0) if n_past else np.ones(n_columns, np.float32)
        weight = np.where(deviation > 1e-4, _relevance(values, targets), 0.0)  # a constant column says nothing
        weight = weight / max(float(np.sqrt((weight**2).sum())), 1e-9)
        scale = (weight / np.maximum(deviation, 1e-4)).astype(np.float32)
        bound = (_COLUMN_BOUND * weight).astype(np.float32)
        scaled = np.clip((values[landmarks] - centre) * scale, -bound, bound)
        return cls._made(centre.astype(np.float32), scale, bound, scaled, width=1.0, as_it_is=False)

    @classmethod
    def plain(cls, values: Floats, landmarks: Numbers, width: float) -> Space:
        """The space of `values` as they are."""
        columns = values.shape[1]
        zeros, ones = np.zeros(columns, np.float32), np.ones(columns, np.float32)
        return cls._made(zeros, ones, np.full(columns, np.inf, np.float32), values[landmarks], width, as_it_is=True)

    @classmethod
    def _made(
        cls, centre: Floats, scale: Floats, bound: Floats, landmarks: Floats, width: float, *, as_it_is: bool
    ) -> Space:
        landmarks = landmarks.astype(np.float32)
        return cls(
            centre=centre,
            scale=scale,
            bound=bound,
            landmarks=landmarks,
            width=width,
            halves=(landmarks**2).sum(axis=1) / np.float32(2.0 * width),
            turned=np.ascontiguousarray(landmarks.T / np.float32(width)),
            as_it_is=as_it_is,
        )

    def with_width(self, width: float, every: int = 1) -> Space:
        """The same space with another idea of near, and only every so manieth landmark."""
        landmarks = self.landmarks[::every]
        return Space._made(self.centre, self.scale, self.bound, landmarks, width, as_it_is=self.as_it_is)

    def likeness(self, values: Floats) -> Floats:
        """[rows, landmarks] likeness of values [rows, columns] to each landmark, 0..1."""
        if self.as_it_is:
            return self._to_landmarks(values)
        scaled = values - self.centre
        scaled *= self.scale
        np.minimum(np.maximum(scaled, -self.bound, out=scaled), self.bound, out=scaled)
        return self._to_landmarks(scaled)

    def whitening(self) -> Floats:
        """[landmarks, landmarks] W: likeness @ W are features of unit prior variance."""
        if not len(self.landmarks):
            return np.zeros((0, 0), np.float32)
        values, vectors = np.linalg.eigh(self._to_landmarks(self.landmarks).astype(np.float64))
        whitening: Floats = (vectors / np.sqrt(np.maximum(values, 1e-4))).astype(np.float32)
        return whitening

    def _to_landmarks(self, scaled: Floats) -> Floats:
        exponent: Floats = scaled @ self.turned
        exponent -= self.halves
        exponent -= np.einsum("rc,rc->r", scaled, scaled)[:, None] * np.float32(0.5 / self.width)
        np.minimum(exponent, 0.0, out=exponent)  # rounding must not make anything more than the same
        return np.exp(exponent, out=exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """The eigenvectors of the features' second moment."""

    values: Doubles  # [features]
    vectors: Doubles  # [features, features]
    rotated: Doubles  # [past, features] features @ vectors
    leverage: Doubles  # [noises, past] diagonal of the hat matrix

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> Basis:
        """From features [past, features]."""
        wide = features.astype(np.float64)
        values, vectors = np.linalg.eigh(wide.T @ wide)
        values = np.maximum(values, 0.0)
        rotated = wide @ vectors
        leverage = (1.0 / (values + NOISES[:, None])) @ (rotated**2).T
        return cls(values=values, vectors=vectors, rotated=rotated, leverage=np.minimum(leverage, 0.999))

    def best_noise(self, targets: Doubles) -> tuple[Numbers, Doubles, Doubles]:
        """Of each column the number of the best noise, its leave-one-out squared error, and that of predicting 0."""
        errors = np.empty((len(NOISES), targets.shape[1]))
        moments = self.rotated.T @ targets
        for number, noise in enumerate(NOISES):
            fitted = self.rotated @ (moments / (self.values + noise)[:, None])
            errors[number] = (((targets - fitted) / (1 - self.leverage[number])[:, None]) ** 2).sum(axis=0)
        best = errors.argmin(axis=0)
        return best, errors[best, np.arange(len(best))], (targets**2).sum(axis=0)

    def error(self, targets: Doubles) -> float:
        """The least leave-one-out squared error that directions of the targets [past, columns] can have."""
        _, errors, nothing = self.best_noise(rotation(targets)[0])
        return float(np.minimum(errors, nothing).sum())

    def solve(self, targets: Doubles, noises: Numbers) -> tuple[Doubles, Doubles]:
        """Weights [features, columns] and leave-one-out predictions [past, columns], a noise for each column."""
        inner = (self.rotated.T @ targets) / (self.values[:, None] + NOISES[noises])
        fitted = self.rotated @ inner
        loo = targets - (targets - fitted) / (1 - self.leverage[noises].T)
        return self.vectors @ inner, loo

    def fit(self, targets: Doubles) -> tuple[Doubles, Doubles]:
        """As `solve`, each principal direction of the targets with its best noise.

        Directions of which the past predicts nothing are dropped. That is what keeps the best of many columns from
        being the luckiest one.
        """
        turned, turn = rotation(targets)
        noises, errors, nothing = self.best_noise(turned)
        weights, loo = self.solve(turned, noises)
        useful = errors < nothing
        return (weights * useful) @ turn.T, (loo * useful) @ turn.T


def bound(values: Floats, low: float, high: float) -> Floats:
    """`np.clip` in place: for a few numbers its checks take longer than its work."""
    np.maximum(values, np.float32(low), out=values)
    np.minimum(values, np.float32(high), out=values)
    return values


def rotation(targets: Doubles) -> tuple[Doubles, Doubles]:
    """Targets in their principal directions, and these directions as columns."""
    if targets.shape[1] > _ROTATED:
        return targets, np.eye(targets.shape[1])
    _, turn = np.linalg.eigh(targets.T @ targets)
    return targets @ turn, turn


def _relevance(values: Floats, targets: Doubles) -> Doubles:
    """[columns] how much each counts in likeness: the fourth root of the variance that it explains alone.

    The root is low because what a column explains together with others is not seen here; its floor keeps all in.
    """
    total = max(float((targets**2).sum()), 1e-12)
    explained = np.zeros(values.shape[1])
    for number, column in enumerate(values.T if len(values) else ()):
        cuts = np.unique(np.quantile(column, np.arange(1, _BINS) / _BINS))
        bins = np.searchsorted(cuts, column, side="right")
        member = np.zeros((len(cuts) + 1, len(column)))
        member[bins, np.arange(len(column))] = 1.0
        count = np.maximum(member.sum(axis=1), 1.0)
        by_chance = len(cuts) / len(column)
        explained[number] = max(float(((member @ targets) ** 2 / count[:, None]).sum()) / total - by_chance, 0.0)
    return (explained + 1e-4) ** 0.25
