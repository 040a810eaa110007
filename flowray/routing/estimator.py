"""From texts to estimates: the one way to ask a trained router, in evaluation and in service.

What can be known before a task comes is kept: the network in both precisions, and for each history the agents' records
and strengths (weakly, as long as the caller holds the history). What remains per batch is features, one pass of the
network and a few products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowray.routing import artifacts, quantization
from flowray.routing.artifacts import ArtifactError
from flowray.routing.cards import described
from flowray.routing.data import OutcomeSet
from flowray.routing.estimates import AgentBatch, Estimates, Floats, Histories, Labelled, TaskBatch
from flowray.routing.features import Features, featurise
from flowray.routing.kernels import bound
from flowray.routing.leads import foretold, leader_of, margin_of, tempered
from flowray.routing.lessons import shares_of, views_of
from flowray.routing.memory import Views, recent
from flowray.routing.naming import Naming
from flowray.routing.network import NetworkConfig, RoutingNetwork
from flowray.routing.quantization import Fidelity
from flowray.routing.records import Records
from flowray.routing.training import Trained

Precision = Literal["auto", "float32", "int8"]

_USUAL_TEXT = "Read the report below, then list its main findings and say which of them you would check first. " * 3
# ^ a task of a usual length, that both precisions are timed with
_TRUST_TASKS = 2_000  # past tasks that trust is measured on
_FULL_CONFIDENCE = 30.0  # attempts after which an agent's record counts two thirds


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquaintance:
    """What a router worked out about some agents from one history."""

    records: Records
    strengths: Tensor  # [agents, strengths]
    trust: float  # 0..1 how far the network's residual held on these agents' past
    leader: int  # the agent with the best past
    margin: float  # of success, by which another's estimate must exceed the leader's to be believed
    naming: Naming | None  # None where the past says nothing of the labels that the network knows


class RouterEstimator:
    """A trained network that answers."""

    def __init__(
        self, network: RoutingNetwork, header: Mapping[str, Any] | None = None, *, precision: Precision = "float32"
    ) -> None:
        """With `precision` "auto" large batches are read with int8 weights and small ones with float32, whichever is
        faster here: `int8_from` is the batch from which int8 is, None where it never is or cannot be had.
        """
        self.network = network.eval()
        self.header = dict(header or {})
        self.small = None if precision == "float32" else quantization.quantized(self.network)
        self.int8_from: int | None = None
        if self.small is not None:
            self.int8_from = 1 if precision == "int8" else quantization.crossover(self._read_once)
        self._known: WeakKeyDictionary[Histories, tuple[tuple[str, ...], Acquaintance]] = WeakKeyDictionary()

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        """What to expect of each agent at each task; agents' columns in `histories` are those of `agents`.

        Raises:
            ValueError: the history is of other agents, or attempts have another shape.
        """
        if not len(agents):
            return self._labels_alone(tasks)
        known = self.acquaintance(agents, histories)
        features = featurise(tasks)
        memory = known.records.memory
        served = self._reader(len(tasks)).serve(features, logits=False)
        recalled = memory.recall(Views(traits=features.traits, sense=served.sense))
        shares = served.shares
        sources = known.records.sources(shares, recalled.success)
        judge = self.network.laid_out().judge
        prior, strengths = known.records.prior, known.strengths.numpy()
        success, quality = judge(served, recalled.familiarity, prior, sources, strengths, known.trust)
        success_p, quality_p = _probability(success), _probability(quality)
        success_p = tempered(success_p, known.leader, known.margin)
        if tasks.attempts is not None and np.isfinite(tasks.attempts).any():
            if tasks.attempts.shape != success_p.shape:
                raise ValueError(f"attempts are of shape {tasks.attempts.shape}, not {success_p.shape}: tasks x agents")
            success_p = memory.conditioned(success_p, tasks.attempts)
        seen = memory.count / (memory.count + _FULL_CONFIDENCE / 2)  # [agents]
        return Estimates(
            success=success_p,
            quality=quality_p,
            latency_s=np.exp(recalled.log_latency),
            cost_usd=np.exp(recalled.log_cost),
            confidence=(seen[None, :] * (0.5 + 0.5 * recalled.familiarity[:, None])).astype(np.float32),
            capabilities=self._labelled(known.naming.agreed(shares, recalled.kinds) if known.naming else shares),
        )

    def _labels_alone(self, tasks: TaskBatch) -> Estimates:
        """What is left to say where there is no agent to speak of."""
        nothing = np.zeros((len(tasks), 0), np.float32)
        shares = self._reader(len(tasks)).serve_labels(featurise(tasks))
        return Estimates(
            success=nothing,
            quality=nothing,
            latency_s=nothing,
            cost_usd=nothing,
            confidence=nothing,
            capabilities=self._labelled(shares),
        )

    def _labelled(self, shares: Mapping[str, Floats]) -> dict[str, Labelled]:
        heads = self.network.config.heads
        return {name: Labelled(labels=heads[name], probabilities=share) for name, share in shares.items()}

    def acquaintance(self, agents: AgentBatch, histories: Histories) -> Acquaintance:
        """Read a history once; as long as it lives the same object is answered from memory."""
        found = self._known.get(histories)
        if found is not None and found[0] == agents.agent_ids:
            return found[1]
        if histories.outcomes.success.shape != (len(histories.tasks), len(agents)):
            shape = histories.outcomes.success.shape
            raise ValueError(
                f"the history has outcomes of shape {shape} for {len(histories.tasks)} tasks and {len(agents)} agents; "
                "give each agent one column, of NaN where nothing is known"
            )
        made = self._acquaint(agents, recent(histories))
        self._known[histories] = agents.agent_ids, made
        return made

    def _reader(self, batch: int) -> RoutingNetwork:
        """The network in the precision that is faster for so many tasks."""
        if self.small is None or self.int8_from is None or batch < self.int8_from:
            return self.network
        return self.small

    def _read_once(self, int8: bool, batch: int) -> object:
        """Read as many tasks of a usual length, for timing."""
        network = self.small if int8 and self.small is not None else self.network
        features = featurise(TaskBatch.of_texts([_USUAL_TEXT] * batch))
        with torch.inference_mode():
            return network.read(features)

    def _acquaint(self, agents: AgentBatch, past: Histories) -> Acquaintance:
        features = featurise(past.tasks)
        shares = shares_of(self.network, features)
        views = views_of(self.network, features)
        records = Records.of(shares, views, past.outcomes, agents, past.kinds)
        strengths = torch.zeros(0, self.network.config.strengths)
        if len(agents):
            with torch.inference_mode():
                strengths = self.network.strengths(torch.from_numpy(records.profiles))
        trust = self._trust(features, shares, past, records, strengths)
        leader = leader_of(records.memory.success.prior) if len(agents) else 0
        margin = 0.0
        if len(agents) > 1:
            expected = foretold(views, past.outcomes, past.kinds)
            margin = margin_of(expected, past.outcomes.success, leader)
        return Acquaintance(
            records=records,
            strengths=strengths,
            trust=trust,
            leader=leader,
            margin=margin,
            naming=self._naming(records, past),
        )

    def _naming(self, records: Records, past: Histories) -> Naming | None:
        kinds, config = records.memory.kinds, self.network.config
        if kinds is None:
            return None
        n_tasks = sum(kind in kinds.labels for kind in past.kinds)
        return Naming.of(kinds.labels, n_tasks, config.heads, config.sums)

    def _trust(
        self, features: Features, shares: Mapping[str, Floats], past: Histories, records: Records, strengths: Tensor
    ) -> float:
        """The factor of the residual, 0..1, under which the past would have been least surprising.

        On tasks that the network was trained on this is 1; on kinds of tasks unknown to it, what its residual is worth.
        """
        rows = np.random.default_rng(0).permutation(len(features))[:_TRUST_TASKS]
        success = past.outcomes.success[rows]
        known = np.isfinite(success)
        if not known.any():
            return 1.0
        leave_one_out = records.of_past(shares, past.outcomes)[rows]
        chosen = features.take(rows)
        with torch.inference_mode():
            encoded = self.network.read(chosen)
            views = Views(traits=chosen.traits, sense=encoded.sense.numpy())
            encoded = encoded.familiar(torch.from_numpy(records.memory.recall(views).familiarity))
            base = self.network.judge(encoded, torch.from_numpy(leave_one_out), strengths, 0.0)[0].numpy()
            whole = self.network.judge(encoded, torch.from_numpy(leave_one_out), strengths, 1.0)[0].numpy()
        scale = np.linspace(0.0, 1.0, 21)
        surprise = [
            float(np.logaddexp(0, np.where(success > 0, -1, 1) * (base + factor * (whole - base)))[known].mean())
            for factor in scale
        ]
        return float(scale[int(np.argmin(surprise))])


def save(directory: Path | str, trained: Trained, **more: Any) -> str:
    """Write a trained network as an artifact; gives its digest."""
    return artifacts.save(directory, quantization.arrays_of(trained.network), {**described(trained), **more})


def load(directory: Path | str, precision: Precision = "auto") -> RouterEstimator:
    """Read a router that can be asked, from an artifact of either precision.

    Raises:
        ArtifactError: it is missing, torn, tampered with, or of another version.
    """
    artifact = artifacts.load(directory)
    try:
        network = quantization.network_of(NetworkConfig.of_dict(artifact.header["network"]), artifact.arrays)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(str(artifact.path), f"its weights do not fit its header: {error}") from error
    return RouterEstimator(network, artifact.header, precision=precision)


def quantize(source: Path | str, out: Path | str, sets: Sequence[OutcomeSet], split: str = "val") -> Fidelity:
    """Write a router again with int8 weights; what that changes on the sets' tasks also goes into its card.

    Raises:
        ArtifactError: `source` cannot be read.
    """
    artifact = artifacts.load(source)
    small = quantization.compressed(quantization.expanded(artifact.arrays))
    header = {name: value for name, value in artifact.header.items() if name not in ("format", "features_version")}
    original = load(source, "float32")
    as_written = RouterEstimator(
        quantization.network_of(NetworkConfig.of_dict(header["network"]), small), precision="int8"
    )
    fidelity = compare(original, as_written, sets, split)
    sizes = {name: quantization.size_bytes(arrays) for name, arrays in (("before", artifact.arrays), ("after", small))}
    fidelity = replace(fidelity, bytes_before=sizes["before"], bytes_after=sizes["after"])
    artifacts.save(out, small, {**header, "precision": "int8", "fidelity": asdict(fidelity)})
    return fidelity


def compare(one: RouterEstimator, other: RouterEstimator, sets: Sequence[OutcomeSet], split: str = "val") -> Fidelity:
    """How far two routers differ on the sets' tasks; sizes are left at 0."""
    errors: list[Floats] = [np.zeros(0, np.float32)]
    decisions: list[npt.NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    labels: list[npt.NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    for of_set in sets:
        asked, histories = of_set.split(split), of_set.histories()
        mine, theirs = (each.estimate(asked.tasks, asked.agents, histories) for each in (one, other))
        if len(asked.agents) and len(asked):
            errors.append(np.abs(mine.success - theirs.success).ravel())
            decisions.append(mine.success.argmax(axis=1) != theirs.success.argmax(axis=1))
        for head, labelled in mine.capabilities.items():
            labels.append(
                labelled.probabilities.argmax(axis=1) != theirs.capabilities[head].probabilities.argmax(axis=1)
            )
    error, decision, label = np.concatenate(errors), np.concatenate(decisions), np.concatenate(labels)
    return Fidelity(
        n_tasks=sum(len(of_set.split(split)) for of_set in sets),
        n_pairs=len(error),
        mean_error=float(error.mean()) if len(error) else 0.0,
        largest_error=float(error.max(initial=0.0)),
        decisions_changed=float(decision.mean()) if len(decision) else 0.0,
        labels_changed=float(label.mean()) if len(label) else 0.0,
        bytes_before=0,
        bytes_after=0,
    )


def _probability(logits: Floats) -> Floats:
    odds = np.exp(bound(-logits, -15.0, 15.0))
    odds += np.float32(1.0)
    return np.divide(np.float32(1.0), odds, out=odds)
