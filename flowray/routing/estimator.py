"""From texts to estimates: the one way to ask a trained router, in evaluation and in service.

What can be known before a task comes is kept: the network in both precisions, and for each history the agents' records
and strengths (weakly, as long as the caller holds the history). What remains per batch is features, one pass of the
network and a few products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from flowray.routing import artifacts
from flowray.routing.artifacts import ArtifactError
from flowray.routing.estimates import AgentBatch, Estimates, Floats, Histories, Labelled, TaskBatch
from flowray.routing.features import Features, featurise
from flowray.routing.memory import recent
from flowray.routing.network import NetworkConfig, RoutingNetwork
from flowray.routing.records import Records
from flowray.routing.training import Trained, as_dict, shares_of

_TRUST_TASKS = 1_000  # past tasks that trust is measured on
_FULL_CONFIDENCE = 30.0  # attempts after which an agent's record counts two thirds


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquaintance:
    """What a router worked out about some agents from one history."""

    records: Records
    strengths: Tensor  # [agents, strengths]
    trust: float  # 0..1 how far the network's residual held on these agents' past


class RouterEstimator:
    """A trained network that answers."""

    def __init__(self, network: RoutingNetwork, header: Mapping[str, Any] | None = None) -> None:
        self.network = network.eval()
        self.header = dict(header or {})
        self._known: WeakKeyDictionary[Histories, tuple[tuple[str, ...], Acquaintance]] = WeakKeyDictionary()

    def estimate(self, tasks: TaskBatch, agents: AgentBatch, histories: Histories) -> Estimates:
        """What to expect of each agent at each task; agents' columns in `histories` are those of `agents`.

        Raises:
            ValueError: the history is of other agents, or attempts have another shape.
        """
        known = self.acquaintance(agents, histories)
        features = featurise(tasks)
        memory = known.records.memory
        recalled = memory.recall(features.traits)
        with torch.inference_mode():
            encoded = self.network.encode(*tensors(features), torch.from_numpy(recalled.familiarity))
            shares = {name: torch.softmax(logits, dim=1).numpy() for name, logits in encoded.logits.items()}
            records = torch.from_numpy(known.records.of_tasks(shares, recalled.success))
            success, quality = self.network.judge(encoded, records, known.strengths, known.trust)
        success_p = _probability(success.numpy())
        quality_p = _probability(quality.numpy())
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
            capabilities={
                name: Labelled(labels=self.network.config.heads[name], probabilities=share)
                for name, share in shares.items()
            },
        )

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

    def _acquaint(self, agents: AgentBatch, past: Histories) -> Acquaintance:
        features = featurise(past.tasks)
        shares = shares_of(self.network, features)
        records = Records.of(shares, features.traits, past.outcomes, agents)
        with torch.inference_mode():
            strengths = (
                self.network.strengths(torch.from_numpy(records.profiles))
                if len(agents)
                else torch.zeros(0, self.network.config.strengths)
            )
        trust = self._trust(features, shares, past, records, strengths)
        return Acquaintance(records=records, strengths=strengths, trust=trust)

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
        familiarity = records.memory.recall(chosen.traits).familiarity
        with torch.inference_mode():
            encoded = self.network.encode(*tensors(chosen), torch.from_numpy(familiarity))
            base = self.network.judge(encoded, torch.from_numpy(leave_one_out), strengths, 0.0)[0].numpy()
            whole = self.network.judge(encoded, torch.from_numpy(leave_one_out), strengths, 1.0)[0].numpy()
        scale = np.linspace(0.0, 1.0, 21)
        surprise = [
            float(np.logaddexp(0, np.where(success > 0, -1, 1) * (base + factor * (whole - base)))[known].mean())
            for factor in scale
        ]
        return float(scale[int(np.argmin(surprise))])


def tensors(features: Features) -> tuple[Tensor, Tensor, Tensor]:
    """The network's inputs."""
    return torch.from_numpy(features.grams), torch.from_numpy(features.offsets), torch.from_numpy(features.traits)


def save(directory: Path | str, trained: Trained, **more: Any) -> str:
    """Write a trained network as an artifact; gives its digest."""
    arrays = {name: values.detach().numpy() for name, values in trained.network.state_dict().items()}
    header = {
        "network": trained.network.config.as_dict(),
        "training": as_dict(trained.config),
        "data": dict(trained.digests),
        "seconds": round(trained.seconds, 1),
        **more,
    }
    return artifacts.save(directory, arrays, header)


def load(directory: Path | str) -> RouterEstimator:
    """Read a router that can be asked.

    Raises:
        ArtifactError: it is missing, torn, tampered with, or of another version.
    """
    artifact = artifacts.load(directory)
    try:
        network = RoutingNetwork(NetworkConfig.of_dict(artifact.header["network"]))
        state = {name: torch.from_numpy(values.copy()) for name, values in artifact.arrays.items()}
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(str(artifact.path), f"its weights do not fit its header: {error}") from error
    return RouterEstimator(network, artifact.header)


def _probability(logits: Floats) -> Floats:
    return (1.0 / (1.0 + np.exp(-np.clip(logits, -15, 15)))).astype(np.float32)
