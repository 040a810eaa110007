"""What a router must beat: methods that anybody could write in an afternoon, honestly fitted.

    majority      the success rate of everything, for every pair; the commonest label
    agent_prior   each agent's success rate
    table         success per agent and *predicted* task type: the bar, see `flowray.routing.history`
    knn           the agent's success at the 25 most similar past tasks
    logistic      one logistic regression per agent; for labels, a linear classifier on words and character n-grams

All read the same text (task, choices, tools), learn from the train split alone and estimate from the agents'
histories. They need scikit-learn (the extra `router`), which nothing else does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flowray.errors import MissingExtra
from flowray.routing.data import OutcomeSet
from flowray.routing.estimates import AgentBatch, Estimates, Estimator, Floats, Histories, Labelled, TaskBatch
from flowray.routing.history import HistoryTable

TARGETS = ("task_type", "capability", "intent", "domain")
NEIGHBOURS = 25
LABEL_NEIGHBOURS = 10
DIMENSIONS = 256  # of the compressed texts that neighbours and regressions look at
SHARPNESS = 4.0  # of the softmax over margins: least log loss on val of 2, 4, 8 and 16, on every set
STRENGTH = 8.0  # pseudo-attempts that shrink the table's rates: on val 4 to 16 differ by 0.1 points of accuracy
NEIGHBOUR_STRENGTH = 4.0  # the same for neighbours, in units of similarity: best on val of 2 to 16


def fit(train: OutcomeSet, seed: int = 0) -> dict[str, Estimator]:
    """Every baseline that this train split can feed, by name; none where it has no tasks.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    if not len(train):
        return {}
    texts = Texts(train.tasks, seed)
    heads = {column: train.labels[column] for column in TARGETS if len(set(train.labels.get(column, ()))) > 1}
    classifiers = {head: Linear(texts, labels) for head, labels in heads.items()}
    fitted: dict[str, Estimator] = {"majority": Majority(heads)}
    if len(train.agents):
        fitted["agent_prior"] = AgentPrior()
        if "task_type" in heads:
            fitted["table"] = Table(classifiers["task_type"])
    fitted["knn"] = Nearest(texts, heads)
    fitted["logistic"] = Logistic(texts, classifiers)
    return fitted


class Texts:
    """Texts as vectors: TF-IDF of words, word pairs and character n-grams, and a compressed form of the same."""

    def __init__(self, tasks: TaskBatch, seed: int) -> None:
        sklearn = _sklearn()
        words = sklearn.feature_extraction.text.TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=150_000, dtype=np.float32
        )
        characters = sklearn.feature_extraction.text.TfidfVectorizer(
            sublinear_tf=True, analyzer="char_wb", ngram_range=(3, 5), min_df=3, max_features=150_000, dtype=np.float32
        )
        self._union = sklearn.pipeline.make_union(words, characters)
        self.tasks = tasks
        self.sparse = self._union.fit_transform(_joined(tasks))  # [tasks, n-grams]
        size = min(DIMENSIONS, min(self.sparse.shape) - 1)
        self._compress = sklearn.pipeline.make_pipeline(
            sklearn.decomposition.TruncatedSVD(size, random_state=seed, n_iter=2), sklearn.preprocessing.Normalizer()
        )
        self.dense: Floats = self._compress.fit_transform(self.sparse)  # [tasks, size]
        self._last: tuple[TaskBatch, Any, Floats] | None = None

    def of(self, tasks: TaskBatch) -> tuple[Any, Floats]:
        """Sparse and compressed vectors; those of the last batch are kept, because every baseline asks for them."""
        if tasks.texts == self.tasks.texts:  # the past that all of this was fitted on
            return self.sparse, self.dense
        if self._last is None or self._last[0] is not tasks:
            sparse = self._union.transform(_joined(tasks))
            self._last = tasks, sparse, self._compress.transform(sparse)
        return self._last[1:]


class Majority:
    """Everybody succeeds as often as everybody did."""

    def __init__(self, heads: Mapping[str, tuple[str, ...]]) -> None:
        self._heads = {head: _one_hot(labels) for head, labels in heads.items()}

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        known = histories.outcomes
        capabilities = {
            head: Labelled(labels=labels, probabilities=np.tile(one_hot.mean(axis=0), (len(tasks), 1)))
            for head, (labels, one_hot) in self._heads.items()
        }
        if not known.known.any():
            return _estimates(tasks, agents, capabilities=capabilities)
        seconds = known.latency_s[np.isfinite(known.latency_s)]
        return _estimates(
            tasks,
            agents,
            success=np.full(len(agents), np.nanmean(known.success)),
            latency_s=np.full(len(agents), np.median(seconds) if len(seconds) else np.nan),
            cost_usd=HistoryTable.of(_one(histories), known).costs_usd(0.0)[:, 0],
            capabilities=capabilities,
        )


class AgentPrior:
    """An agent succeeds as often as it did, whatever the task."""

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        table = HistoryTable.of(_one(histories), histories.outcomes)
        return _estimates(
            tasks,
            agents,
            success=table.agent_success_rates(),
            latency_s=_medians(histories.outcomes.latency_s),
            cost_usd=table.costs_usd(0.0)[:, 0],
        )


class Table:
    """An agent succeeds as often as it did at tasks of that type, where types are what a linear classifier says."""

    def __init__(self, types: Linear) -> None:
        self._classifier = types

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        types = self._classifier.predict(tasks)
        past = self._classifier.predict(histories.tasks).probabilities
        table = HistoryTable.of((past == past.max(axis=1, keepdims=True)).astype(np.float32), histories.outcomes)
        mixed = types.probabilities.astype(np.float64)  # [tasks, types]
        return _estimates(
            tasks,
            agents,
            success=mixed @ table.success_rates(STRENGTH).T,
            quality=mixed @ table.quality_rates(STRENGTH).T,
            latency_s=np.exp(mixed @ np.log(table.latencies_s(STRENGTH)).T),
            cost_usd=mixed @ table.costs_usd(STRENGTH).T,
            capabilities={"task_type": types},
        )


class Nearest:
    """An agent succeeds as often as it did at the most similar past tasks."""

    def __init__(self, texts: Texts, heads: Mapping[str, tuple[str, ...]]) -> None:
        self._texts = texts
        self._heads = {head: _one_hot(labels) for head, labels in heads.items()}

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        _, dense = self._texts.of(tasks)
        capabilities = {}
        for head, (labels, one_hot) in self._heads.items():
            votes, _ = _neighbours(dense, self._texts.dense, one_hot, LABEL_NEIGHBOURS)
            shares = (votes + 1e-6) / (votes + 1e-6).sum(axis=1, keepdims=True)
            capabilities[head] = Labelled(labels=labels, probabilities=shares.astype(np.float32))
        if not histories.outcomes.known.any():
            return _estimates(tasks, agents, capabilities=capabilities)
        outcomes = histories.outcomes
        table = HistoryTable.of(_one(histories), outcomes)
        prior = table.agent_success_rates()
        good, weight = _neighbours(dense, self._texts.of(histories.tasks)[1], outcomes.success, NEIGHBOURS)
        return _estimates(
            tasks,
            agents,
            success=(good + NEIGHBOUR_STRENGTH * prior) / (weight + NEIGHBOUR_STRENGTH),
            cost_usd=table.costs_usd(0.0)[:, 0],
            capabilities=capabilities,
        )


class Logistic:
    """A logistic regression per agent on the compressed text; a linear classifier on the whole of it for labels."""

    def __init__(self, texts: Texts, classifiers: Mapping[str, Linear]) -> None:
        self._texts = texts
        self._classifiers = classifiers

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        capabilities = {head: classifier.predict(tasks) for head, classifier in self._classifiers.items()}
        outcomes = histories.outcomes
        if not outcomes.known.any():
            return _estimates(tasks, agents, capabilities=capabilities)
        _, dense = self._texts.of(tasks)
        _, past = self._texts.of(histories.tasks)
        table = HistoryTable.of(_one(histories), outcomes)
        success = np.tile(table.agent_success_rates(), (len(tasks), 1))  # [tasks, agents], where nothing can be fitted
        for agent in range(len(agents)):
            rows = outcomes.known[:, agent]
            ended = outcomes.success[rows, agent] >= 0.5
            if ended.any() and not ended.all():
                success[:, agent] = (
                    _sklearn().linear_model.LogisticRegression().fit(past[rows], ended).predict_proba(dense)[:, 1]
                )
        return _estimates(
            tasks, agents, success=success, cost_usd=table.costs_usd(0.0)[:, 0], capabilities=capabilities
        )


class Linear:
    """A linear support vector classifier, one label against the rest; margins become probabilities by a softmax."""

    def __init__(self, texts: Texts, labels: tuple[str, ...]) -> None:
        self._texts = texts
        self._model = _sklearn().svm.LinearSVC(C=0.5, random_state=0).fit(texts.sparse, np.array(labels))
        self._labels = tuple(str(label) for label in self._model.classes_)

    def predict(self, tasks: TaskBatch) -> Labelled:
        margins = self._model.decision_function(self._texts.of(tasks)[0])
        if margins.ndim == 1:  # two labels have one margin
            margins = np.stack([-margins, margins], axis=1)
        odds = np.exp(SHARPNESS * (margins - margins.max(axis=1, keepdims=True)))
        shares = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        return Labelled(labels=self._labels, probabilities=shares)


def _neighbours(dense: Floats, past: Floats, values: Floats, k: int) -> tuple[Floats, Floats]:
    """Sums over the k most similar past tasks of similarity x value, and of similarity; [tasks, columns] each."""
    k = min(k, len(past))
    sums = np.empty((len(dense), values.shape[1]), np.float32)
    weights = np.empty_like(sums)
    known = np.isfinite(values)
    filled = np.where(known, values, np.float32(0.0))
    for start in range(0, len(dense), 512):  # 512 x 10,000 similarities are 20 MB
        similar = dense[start : start + 512] @ past.T  # [tasks, past]
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        weight = np.maximum(np.take_along_axis(similar, nearest, axis=1), 0.0)  # [tasks, k]
        sums[start : start + 512] = np.einsum("tk,tkc->tc", weight, filled[nearest])
        weights[start : start + 512] = np.einsum("tk,tkc->tc", weight, known[nearest].astype(np.float32))
    return sums, weights


def _estimates(
    tasks: TaskBatch,
    agents: AgentBatch,
    *,
    success: npt.ArrayLike = np.nan,
    quality: npt.ArrayLike | None = None,
    latency_s: npt.ArrayLike = np.nan,
    cost_usd: npt.ArrayLike = np.nan,
    capabilities: Mapping[str, Labelled] | None = None,
) -> Estimates:
    """Estimates from what broadcasts to [tasks, agents]; what a method cannot tell is NaN."""

    def spread(values: npt.ArrayLike) -> Floats:
        return np.broadcast_to(np.asarray(values, np.float32), (len(tasks), len(agents)))

    return Estimates(
        success=spread(success),
        quality=spread(success if quality is None else quality),
        latency_s=spread(latency_s),
        cost_usd=spread(cost_usd),
        confidence=spread(np.nan),
        capabilities=capabilities or {},
    )


def _joined(tasks: TaskBatch) -> list[str]:
    return ["\n".join(filter(None, parts)) for parts in zip(tasks.texts, tasks.choices, tasks.tools, strict=True)]


def _one(histories: Histories) -> Floats:
    """Every past task belongs to one and the same capability."""
    return np.ones((len(histories.tasks), 1), np.float32)


def _one_hot(labels: tuple[str, ...]) -> tuple[tuple[str, ...], Floats]:
    names, places = np.unique(np.array(labels), return_inverse=True)
    return tuple(str(name) for name in names), np.eye(len(names), dtype=np.float32)[places]


def _medians(values: Floats) -> Floats:
    """Per column; NaN for a column without values."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
        return np.asarray(np.nanmedian(values, axis=0), dtype=np.float32)


def _sklearn() -> Any:
    """scikit-learn with the modules that are used here."""
    try:
        import sklearn.decomposition
        import sklearn.feature_extraction.text
        import sklearn.linear_model
        import sklearn.pipeline
        import sklearn.preprocessing
        import sklearn.svm
    except ImportError as error:
        raise MissingExtra("baselines need scikit-learn: pip install 'flowray[router]'") from error
    return sklearn
