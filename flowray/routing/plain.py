"""The network as it is served, in plain numpy: the same numbers without a framework's cost per operation.

For one task the arithmetic takes ten microseconds and torch's bookkeeping for its forty operations ten times that. So
the weights are laid out once for serving: the heads side by side in one matrix, batch normalisation folded into the
readers, and what all readers read (traits and labels) multiplied for all of them at once. `RoutingNetwork.encode` is
what this must agree with; a test compares them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor, nn

from flowray.routing.estimates import Floats
from flowray.routing.kernels import bound

if TYPE_CHECKING:
    from flowray.routing.network import RoutingNetwork


class Served(NamedTuple):
    """What the network makes of tasks, as arrays."""

    logits: dict[str, Floats]  # head -> [tasks, labels]; empty where nobody wanted them
    shares: dict[str, Floats]  # head -> [tasks, labels] the same as probabilities
    hidden: Floats  # [readers, tasks, hidden]
    certain: Floats  # [tasks, tables] of each table's head
    sense: Floats  # [tasks, sense_width]


class Plain:
    """The weights of a network that stands still, laid out for serving."""

    def __init__(self, network: RoutingNetwork) -> None:
        config = network.config
        self._config = config
        self._widths = np.cumsum([config.label_width, config.readers * config.meaning_width, config.sense_width])
        self._trait_mean, self._trait_scale = _array(network.trait_mean), _array(network.trait_scale)
        of_traits = network.label_traits
        self._of_traits = None if of_traits is None else (_array(of_traits.weight.T), _array(of_traits.bias))
        learned = {name: head for name, head in network.heads.items() if isinstance(head, nn.Linear)}
        tables = [name for name in config.tables if name in learned]  # first, so that their shares lie side by side
        heads = {name: learned[name] for name in [*tables, *(name for name in learned if name not in tables)]}
        empty = np.zeros((0, config.label_width + config.label_traits), np.float32)
        self._heads = _solid(np.concatenate([empty, *(_array(head.weight) for head in heads.values())]).T)
        self._head_bias = np.concatenate([empty[:, 0], *(_array(head.bias) for head in heads.values())])
        ends = np.cumsum([0, *(len(config.heads[name]) for name in heads)]).tolist()
        self._places = {name: slice(*at) for name, at in zip(heads, pairwise(ends), strict=True)}
        self._begins = np.array(ends[:-1], np.intp)
        self._head_of = np.repeat(np.arange(len(heads)), np.diff(ends))  # [labels] which head each belongs to
        self._into = {}
        for name, (of, into) in config.sums.items():
            self._into[name] = of, np.eye(len(config.heads[name]), dtype=np.float32)[list(into)]
        scale, shift = _normalisation(network, config.readers * config.meaning_width)
        lower = _array(network.lower.weight)  # [readers, inputs, hidden]
        own = lower[:, : config.meaning_width]
        self._own = own * scale.reshape(config.readers, -1, 1)
        self._common = _solid(np.concatenate(list(lower[:, config.meaning_width :]), axis=1))
        self._lower_bias = _array(network.lower.bias) + shift.reshape(config.readers, 1, -1) @ own
        self._upper, self._upper_bias = _array(network.upper.weight), _array(network.upper.bias)
        said = (network.difficulty, network.quality, network.demand)  # the mean over readers is a product as well
        share = np.float32(1.0 / config.readers)
        verdict = np.concatenate([_array(each.weight) for each in said], axis=2) * share
        self._verdict = _solid(verdict.reshape(config.readers * config.hidden, 2 + config.strengths))
        self._verdict_bias = np.concatenate([_array(each.bias).mean(axis=(0, 1)) for each in said])
        self._gates, self._gate_bias = _solid(_array(network.gates.weight).T), _array(network.gates.bias)
        self._temperature = np.float32(network.temperature)

    def read(self, sums: Floats, traits: Floats, *, logits: bool = True) -> Served:
        """`sums` [tasks, all widths + 1] as `Folded.pooled` gives them."""
        config, n_tasks = self._config, len(sums)
        labels_end, meaning_end, sense_end = self._widths
        scale, standard = self._scaled(sums, traits)
        values, shares = self._labels(sums[:, :labels_end] * scale, standard)
        tables = [shares[name] for name in config.tables]
        common = np.concatenate([standard, *tables], axis=1)
        meaning = (sums[:, labels_end:meaning_end] * scale).reshape(n_tasks, config.readers, config.meaning_width)
        hidden = np.matmul(meaning.swapaxes(0, 1), self._own)  # [readers, tasks, hidden]
        hidden += (common @ self._common).reshape(n_tasks, config.readers, config.hidden).swapaxes(0, 1)
        hidden += self._lower_bias
        np.maximum(hidden, 0, out=hidden)
        hidden = np.matmul(hidden, self._upper)
        hidden += self._upper_bias
        np.maximum(hidden, 0, out=hidden)
        certain = np.empty((n_tasks, len(tables)), np.float32)
        for at, share in enumerate(tables):
            share.max(axis=1, out=certain[:, at])
        sense = sums[:, meaning_end:sense_end]
        length = np.sqrt(np.einsum("tw,tw->t", sense, sense))[:, None]
        said = self._logits(values, shares) if logits else {}
        return Served(said, shares, hidden, certain, sense / np.maximum(length, np.float32(1e-12)))

    def read_labels(self, sums: Floats, traits: Floats) -> dict[str, Floats]:
        """The probabilities alone: `sums` [tasks, label_width + 1]."""
        scale, standard = self._scaled(sums, traits)
        return self._labels(sums[:, :-1] * scale, standard)[1]

    def _scaled(self, sums: Floats, traits: Floats) -> tuple[Floats, Floats]:
        scale: Floats = np.maximum(sums[:, -1:], 1) ** np.float32(-0.5)
        standard: Floats = (traits - self._trait_mean) * self._trait_scale
        return scale, bound(standard, -4.0, 4.0)

    def judge(
        self,
        served: Served,
        familiarity: Floats,
        prior: Floats,
        sources: Floats,
        strengths: Floats,
        trust: float,
    ) -> tuple[Floats, Floats]:
        """Logits [tasks, agents] of success and of quality, as `RoutingNetwork.judge` has them.

        What records say is in `prior` [agents] and the other `sources` [tasks, sources - 1, agents].
        """
        context = np.concatenate([served.certain, familiarity[:, None]], axis=1)
        gates = 1.0 / (1.0 + np.exp(-(context @ self._gates + self._gate_bias)))  # [tasks, sources - 1]
        logits = np.matmul(gates[:, None, :], sources)[:, 0]
        logits += prior * (1.0 - gates.sum(axis=1, keepdims=True))
        hidden = served.hidden.swapaxes(0, 1).reshape(len(context), self._verdict.shape[0])
        verdict = hidden @ self._verdict + self._verdict_bias  # [tasks, 2 + strengths]
        if self._config.residual:
            logits += trust * (verdict[:, :1] + verdict[:, 2:] @ strengths.T)
        logits *= self._temperature
        return logits, logits + trust * verdict[:, 1:2]

    def _labels(self, pooled: Floats, standard: Floats) -> tuple[Floats, dict[str, Floats]]:
        """Logits of all learned heads side by side, and probabilities of every head."""
        if self._of_traits is not None:
            weight, bias = self._of_traits
            pooled = np.concatenate([pooled, np.maximum(standard @ weight + bias, 0)], axis=1)
        values = pooled @ self._heads + self._head_bias
        whole = values
        if self._places:
            whole = np.exp(values - np.maximum.reduceat(values, self._begins, axis=1)[:, self._head_of])
            whole /= np.add.reduceat(whole, self._begins, axis=1)[:, self._head_of]
        shares = {name: whole[:, place] for name, place in self._places.items()}
        for name, (of, into) in self._into.items():
            shares[name] = shares[of] @ into
        return values, shares

    def _logits(self, values: Floats, shares: dict[str, Floats]) -> dict[str, Floats]:
        logits = {name: values[:, place] for name, place in self._places.items()}
        for name in self._into:
            logits[name] = np.log(np.maximum(shares[name], np.float32(1e-9)))
        return logits


def _normalisation(network: RoutingNetwork, width: int) -> tuple[Floats, Floats]:
    """What a meaning is multiplied by, and what is added then."""
    norm = network.norm
    if not isinstance(norm, nn.BatchNorm1d) or norm.running_mean is None or norm.running_var is None:
        return np.ones(width, np.float32), np.zeros(width, np.float32)
    scale = _array(norm.weight) / np.sqrt(_array(norm.running_var) + np.float32(norm.eps))
    return scale, _array(norm.bias) - _array(norm.running_mean) * scale


def _array(tensor: Tensor) -> Floats:
    values: Floats = tensor.detach().numpy()
    return values


def _solid(values: Floats) -> Floats:
    return np.ascontiguousarray(values)
