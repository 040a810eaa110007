"""What the agents' records say of each pair of task and agent, as the network takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowray.routing.estimates import AgentBatch, Floats, Outcomes
from flowray.routing.history import HistoryTable
from flowray.routing.kernels import bound
from flowray.routing.memory import Memory, Views

TABLE_STRENGTH = 8.0  # attempts by which a rate in a capability is pulled to the agent's overall rate
_AT_ONCE = 256  # past tasks whose tables are taken apart together


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The agents' past, read by labels and by likeness."""

    memory: Memory
    tables: Mapping[str, HistoryTable]  # head -> table over its labels
    rates: Mapping[str, Floats]  # head -> [labels, agents] success, shrunk
    profiles: Floats  # [agents, labels of all tables + 2]
    prior: Floats  # [agents] logits

    @classmethod
    def of(
        cls,
        shares: Mapping[str, Floats],
        views: Views,
        outcomes: Outcomes,
        agents: AgentBatch,
        kinds: Sequence[str] = (),
        decay: float = 1.0,
    ) -> Records:
        """`shares` are the label probabilities [past tasks, labels] of each head that has a table."""
        memory = Memory.of(views, outcomes, kinds)
        tables = {name: HistoryTable.of(share, outcomes, decay=decay) for name, share in shares.items()}
        prior = logit(memory.success.prior)
        rates = {name: table.success_rates(TABLE_STRENGTH).T.astype(np.float32) for name, table in tables.items()}
        price = np.log(np.maximum((agents.price_in_per_m + agents.price_out_per_m) / 2, 1e-3))
        middle = np.nanmedian(price) if np.isfinite(price).any() else 0.0
        relative = np.nan_to_num(price - middle, nan=0.0)
        profiles = np.concatenate(
            [
                *(logit(rate).T - prior[:, None] for rate in rates.values()),
                prior[:, None] - (prior.mean() if len(prior) else 0.0),
                relative[:, None],
            ],
            axis=1,
        )
        return cls(memory=memory, tables=tables, rates=rates, profiles=profiles.astype(np.float32), prior=prior)

    def sources(self, shares: Mapping[str, Floats], recalled: Floats) -> Floats:
        """[tasks, sources - 1, agents] logits for new tasks, of all sources but the prior, for serving.

        `recalled` is what the memory says of the tasks.
        """
        found = np.empty((len(recalled), 1 + len(self.rates), recalled.shape[1]), np.float32)
        found[:, 0] = recalled
        for at, (name, rate) in enumerate(self.rates.items(), start=1):
            np.matmul(shares[name], rate, out=found[:, at])
        return _logit(found)

    def of_tasks(self, shares: Mapping[str, Floats], recalled: Floats) -> Floats:
        """[tasks, agents, sources] logits for new tasks, the prior first."""
        return self._with_prior(self.sources(shares, recalled).swapaxes(1, 2))

    def of_past(
        self, shares: Mapping[str, Floats], outcomes: Outcomes, asked: Mapping[str, Floats] | None = None
    ) -> Floats:
        """[past tasks, agents, sources] logits for the past itself, each without what is known from that very task.

        `shares` are what the tables were made with; they are looked up by `asked` where that differs.
        """
        asked = shares if asked is None else asked
        rates = []
        for name, table in self.tables.items():
            parts = []
            for at in range(0, len(outcomes.success), _AT_ONCE):
                rows = slice(at, at + _AT_ONCE)
                without = table.without(shares[name][rows], outcomes.take(rows)).success_rates(TABLE_STRENGTH)
                parts.append(np.einsum("tk,tak->ta", asked[name][rows], without))
            rates.append(np.concatenate(parts) if parts else np.zeros_like(outcomes.success))
        return self._with_prior(logit(np.stack([self.memory.recalled_past(), *rates], axis=2)))

    def _with_prior(self, others: Floats) -> Floats:
        """The prior, which is that of every task, before the other sources [tasks, agents, sources - 1]."""
        prior = np.broadcast_to(self.prior[:, None], (*others.shape[:2], 1))
        return np.concatenate([prior, others], axis=2)


def logit(probabilities: Floats) -> Floats:
    """Log odds, within bounds that twenty attempts could prove."""
    return _logit(probabilities.astype(np.float32))


def _logit(probabilities: Floats) -> Floats:
    """The same, in place."""
    odds = bound(probabilities, 0.02, 0.98)
    odds /= np.float32(1.0) - odds
    return np.log(odds, out=odds)
