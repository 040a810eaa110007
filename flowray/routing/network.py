"""The routing network: from a task's features and the agents' records to probabilities. One class trains and serves.

    grams --bag--> labels ----linear----> capability heads ---+--> soft records of each agent (history table) --+
     | \\     traits --/                                       |                                                 |
     |  --bag--> meaning --+--> readers --> difficulty of the task, and its demand: one vector each             |
     |   traits -----------+                                       . (dot)                                      v
     |  agents' records -> profile -attention over the candidates-> strengths: one vector each --> residual + base logit
     |
      --bag--> sense: a vector of the text that no label had a part in (`flowray.routing.sense`), for finding like tasks

Training reads n-grams, a random part of them (`encode`); serving reads words, each of which is the sum of its n-grams
and is kept (`read`, `flowray.routing.folding`). Both come to the same.

The base of a pair's logit is a gated mean of what the past says of it in several ways: the agent's prior, like tasks
(`flowray.routing.memory`), and the table per capability of each head. The network adds a residual that it learned from
texts. An agent is known by its records alone, so one never seen in training needs no retraining. Of tasks of a kind
never seen in training the residual may be worthless: `trust` scales it, and is measured on the agents' own past when a
history is read (`flowray.routing.estimator`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowray.routing.estimates import Floats
from flowray.routing.features import BUCKETS, N_TRAITS, Features
from flowray.routing.folding import Folded, Latest
from flowray.routing.plain import Plain, Served

SOURCES = 2  # of a base logit besides the tables: the agent's prior, and like tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The shape of a network."""

    heads: Mapping[str, tuple[str, ...]]  # name -> labels
    tables: tuple[str, ...]  # heads whose labels the agents' records are kept by
    sums: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    # ^ heads that are not learned: name -> another head and, for each label of that, the number of the label it is in
    rows: int = 57_344  # n-grams that have a vector of their own; row 0 stands for all others
    label_width: int = 112  # of the bag that capabilities are read from
    label_traits: int = 32  # numbers that capabilities are read from besides, made of the traits; 0: none
    sense_width: int = 96  # of the vectors that tell how alike two texts are
    readers: int = 3  # that judge each task on their own; their mean is the answer
    meaning_width: int = 24  # of each reader's bag
    hidden: int = 96  # of each reader
    strengths: int = 16  # numbers that demand and strength meet in
    label_dropout: float = 0.2
    dropout: float = 0.3
    meaning_dropout: float = 0.5
    gram_dropout: float = 0.3  # share of n-grams left out while training
    grams_read: int = 400  # of a task while training, at most, on average
    batch_norm: bool = False  # of meanings; brings nothing: `flowray router ablate`
    attention: bool = False  # candidates look at one another; brings nothing either
    residual: bool = True  # False: the base alone, for ablations

    @property
    def profile_width(self) -> int:
        """Numbers that an agent is known by: a deviation per label of the tables, its prior, its relative price."""
        return sum(len(self.heads[name]) for name in self.tables) + 2

    @property
    def n_sources(self) -> int:
        """Kinds of record that the base logit is made of."""
        return SOURCES + len(self.tables)

    def as_dict(self) -> dict[str, Any]:
        """For the artifact's header."""
        return asdict(self)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """The other way round; JSON knows lists only."""
        heads = {str(name): tuple(map(str, labels)) for name, labels in values["heads"].items()}
        sums = {str(name): (str(of), tuple(map(int, into))) for name, (of, into) in values["sums"].items()}
        return cls(**{**values, "heads": heads, "tables": tuple(values["tables"]), "sums": sums})


class Encoded(NamedTuple):
    """What the network makes of tasks, whoever may do them."""

    logits: Mapping[str, Tensor]  # head -> [tasks, labels]
    hidden: Tensor  # [readers, tasks, hidden]
    context: Tensor  # [tasks, tables + 1] certainty of each table's head, familiarity of the task
    sense: Tensor  # [tasks, sense_width] of length 1, or 0 where no n-gram is known; empty while training

    def familiar(self, familiarity: Tensor) -> Encoded:
        """The same tasks, of which the agents' past says [tasks] how familiar they are."""
        return self._replace(context=torch.cat([self.context[:, :-1], familiarity[:, None]], dim=1))


class Pooled(NamedTuple):
    """What the bags make of tasks."""

    labels: Tensor  # [tasks, label_width]
    meaning: Tensor  # [tasks, readers * meaning_width]
    sense: Tensor  # [tasks, sense_width], as in `Encoded`


class Known(NamedTuple):
    """The n-grams that have a row."""

    rows: Tensor  # [n-grams of all tasks]
    offsets: Tensor  # [tasks] int32, where each task's begin
    scale: Tensor  # [tasks] that a sum of so many rows is multiplied by


class Readers(nn.Module):
    """Linear layers side by side, one for each reader: [readers, tasks, inputs] -> [readers, tasks, outputs]."""

    def __init__(self, readers: int, inputs: int, outputs: int, std: float | None = None) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(readers, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(readers, 1, outputs))
        if std is not None:
            nn.init.normal_(self.weight, std=std)

    def forward(self, values: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, values, self.weight)


class RoutingNetwork(nn.Module):
    """See the module."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary: Tensor
        self.register_buffer("vocabulary", torch.full((config.rows - 1,), -1, dtype=torch.int32))
        self.row_of: Tensor  # [BUCKETS] int32, 0 for n-grams that are not known
        self.register_buffer("row_of", torch.zeros(BUCKETS, dtype=torch.int32), persistent=False)
        self.label_bag = nn.EmbeddingBag(config.rows, config.label_width, mode="sum")
        self.label_traits = nn.Linear(N_TRAITS, config.label_traits) if config.label_traits else None
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(config.label_width + config.label_traits, len(labels))
                for name, labels in config.heads.items()
                if name not in config.sums
            }
        )
        meaning = config.readers * config.meaning_width
        for name, (_, into) in config.sums.items():
            self.register_buffer(f"_into_{name}", torch.tensor(into), persistent=False)
        self.meaning_bag = nn.EmbeddingBag(config.rows, meaning, mode="sum")
        self.sense_bag = nn.EmbeddingBag(config.rows, config.sense_width, mode="sum")
        self.sense_bag.weight.requires_grad_(False)  # it is computed, not learned
        self.norm = nn.BatchNorm1d(meaning) if config.batch_norm else nn.Identity()
        self.trait_mean: Tensor
        self.trait_scale: Tensor
        self.register_buffer("trait_mean", torch.zeros(N_TRAITS))
        self.register_buffer("trait_scale", torch.ones(N_TRAITS))
        n_labels = sum(len(config.heads[name]) for name in config.tables)
        self.lower = Readers(config.readers, config.meaning_width + N_TRAITS + n_labels, config.hidden)
        self.upper = Readers(config.readers, config.hidden, config.hidden)
        self.difficulty = Readers(config.readers, config.hidden, 1, std=0.02)
        self.demand = Readers(config.readers, config.hidden, config.strengths, std=0.02)
        self.quality = Readers(config.readers, config.hidden, 1, std=0.02)
        self.profile = nn.Sequential(
            nn.Linear(config.profile_width, 64), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(64, config.strengths)
        )
        self.candidates = nn.MultiheadAttention(config.strengths, 2, batch_first=True) if config.attention else None
        self.gates = nn.Linear(len(config.tables) + 1, config.n_sources - 1)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))
        for bag in (self.label_bag, self.meaning_bag):
            nn.init.normal_(bag.weight, std=0.1)
        nn.init.zeros_(self.sense_bag.weight)
        self.in_numpy = True  # False where some layers compute otherwise (`quantization`)
        self.folds: Latest[Folded] = Latest()
        self.label_folds: Latest[Folded] = Latest()  # of the label bag alone
        self._plain: Latest[Plain] = Latest()
        self._weights: tuple[Tensor, ...] = ()  # that `_plain` is made of, found once
        nn.init.normal_(self.gates.weight, std=0.02)
        with torch.no_grad():
            self.gates.bias[0] = 0.5  # like tasks weigh most at first
            self.gates.bias[1:] = -1.5

    def learn_words(self, buckets: Tensor) -> None:
        """Give these buckets [at most rows - 1] a row each; all others are not read."""
        self.vocabulary.fill_(-1)[: len(buckets)] = buckets.to(torch.int32)
        self._index()

    def _index(self) -> None:
        known = self.vocabulary[self.vocabulary >= 0].long()
        numbers = torch.arange(1, len(known) + 1, dtype=torch.int32, device=self.row_of.device)
        self.row_of.zero_()[known] = numbers

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module does; the index of the vocabulary is made again."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._index()
        return result

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.vocabulary.device

    def label_parts(self) -> list[nn.Module]:
        """What learns labels; outcomes leave it alone."""
        return [self.label_bag, self.heads, *([self.label_traits] if self.label_traits is not None else [])]

    def read(self, features: Features, familiarity: Tensor | None = None) -> Encoded:
        """What there is to know of the tasks, as it is served.

        `familiarity` [tasks] comes from the agents' past; where that is asked with the tasks' `sense`, it is told
        afterwards (`Encoded.familiar`) and 0 until then.
        """
        if familiarity is None:
            familiarity = torch.zeros(len(features))
        if self.training or not self.in_numpy:
            pooled, traits = self.pooled(features), self._standard(torch.from_numpy(features.traits))
            logits = self._labels(pooled.labels, traits)
            shares = {name: torch.softmax(logits[name], dim=1) for name in self.config.tables}
            return self._encode(pooled, traits, familiarity, logits, shares)
        served = self.serve(features)
        return Encoded(
            {name: torch.from_numpy(values) for name, values in served.logits.items()},
            torch.from_numpy(served.hidden),
            torch.cat([torch.from_numpy(served.certain), familiarity[:, None]], dim=1),
            torch.from_numpy(served.sense),
        )

    def pooled(self, features: Features) -> Pooled:
        """What the bags make of the tasks, word by word."""
        config = self.config
        widths = [config.label_width, config.readers * config.meaning_width, config.sense_width, 1]
        labels, meaning, sense, count = torch.split(self._sums(features), widths, dim=1)
        scale = count.clamp(min=1).rsqrt()
        return Pooled(labels * scale, meaning * scale, functional.normalize(sense, dim=1))

    def sense(self, features: Features) -> Tensor:
        """[tasks, sense_width] of length 1, or 0 where no n-gram is known: the likeness of two texts is a product."""
        return self.pooled(features).sense

    def read_labels(self, features: Features) -> dict[str, Tensor]:
        """Logits [tasks, labels] of every head, as they are served."""
        return self._labels(self.pooled(features).labels, self._standard(torch.from_numpy(features.traits)))

    def _sums(self, features: Features) -> Tensor:
        """[tasks, all widths + 1] of all bags side by side, and how many n-grams are known."""
        bags = (self.label_bag.weight, self.meaning_bag.weight, self.sense_bag.weight)
        return self.folds.of((*bags, self.vocabulary), lambda: Folded(bags, self.row_of)).pooled(features)

    def serve(self, features: Features, *, logits: bool = True) -> Served:
        """As `read`, in arrays: what `Plain.judge` takes, which needs no `logits`."""
        if self.in_numpy:
            return self.laid_out().read(self._sums(features).numpy(), features.traits, logits=logits)
        with torch.inference_mode():
            read = self.read(features)
        said = {name: values.numpy() for name, values in read.logits.items()}
        shares = {name: torch.softmax(values, dim=1).numpy() for name, values in read.logits.items()}
        return Served(said, shares, read.hidden.numpy(), read.context[:, :-1].numpy(), read.sense.numpy())

    def serve_labels(self, features: Features) -> dict[str, Floats]:
        """[tasks, labels] probabilities of every head, as `serve` has them, for a fraction of its time."""
        if not self.in_numpy:
            return self.serve(features).shares
        bags = (self.label_bag.weight,)
        folded = self.label_folds.of((*bags, self.vocabulary), lambda: Folded(bags, self.row_of))
        return self.laid_out().read_labels(folded.pooled(features).numpy(), features.traits)

    def laid_out(self) -> Plain:
        """The weights as they are now, for serving."""
        if not self._weights:
            weights = [*self.named_parameters(), *self.named_buffers()]
            self._weights = tuple(tensor for name, tensor in weights if "_bag" not in name and "row_of" not in name)
        return self._plain.of(self._weights, lambda: Plain(self))

    def labels(self, grams: Tensor, offsets: Tensor, traits: Tensor) -> dict[str, Tensor]:
        """Logits [tasks, labels] of every head, as they are learned."""
        pooled = self._pooled(self.label_bag, self._known(grams, offsets))
        return self._labels(pooled, self._standard(traits))

    def _labels(self, pooled: Tensor, traits: Tensor) -> dict[str, Tensor]:
        config = self.config
        pooled = functional.dropout(pooled, config.label_dropout, self.training)  # [tasks, label_width]
        if self.label_traits is not None:
            seen = functional.relu(self.label_traits(functional.dropout(traits, 0.1, self.training)))
            pooled = torch.cat([pooled, functional.dropout(seen, config.label_dropout, self.training)], dim=1)
        logits: dict[str, Tensor] = {name: head(pooled) for name, head in self.heads.items()}
        for name, (of, _) in config.sums.items():
            shares = pooled.new_zeros(len(pooled), len(config.heads[name]))
            shares = shares.index_add(1, self.get_buffer(f"_into_{name}"), torch.softmax(logits[of], dim=1))
            logits[name] = shares.clamp(min=1e-9).log()
        return logits

    def encode(
        self,
        grams: Tensor,
        offsets: Tensor,
        traits: Tensor,
        familiarity: Tensor,
        shares: Mapping[str, Tensor] | None = None,
    ) -> Encoded:
        """What there is to know of the tasks, as it is learned. `familiarity` [tasks] comes from the agents' past.

        `shares` [tasks, labels] of each table's head stand in for the network's own in training, where those would be
        too good to be true: it has seen the labels of these very texts.
        """
        known = self._known(grams, offsets)
        traits = self._standard(traits)
        logits = self._labels(self._pooled(self.label_bag, known), traits) if shares is None else {}
        if shares is None:
            shares = {name: torch.softmax(logits[name], dim=1) for name in self.config.tables}
        sense = traits.new_zeros(len(traits), 0)
        if not self.training:
            sense = functional.normalize(self._pooled(self.sense_bag, known), dim=1)
        pooled = Pooled(traits.new_zeros(0), self._pooled(self.meaning_bag, known), sense)
        return self._encode(pooled, traits, familiarity, logits, shares)

    def _encode(
        self,
        pooled: Pooled,
        traits: Tensor,
        familiarity: Tensor,
        logits: Mapping[str, Tensor],
        shares: Mapping[str, Tensor],
    ) -> Encoded:
        config = self.config
        meaning = self.norm(pooled.meaning)  # [tasks, readers * meaning_width]
        meaning = functional.dropout(meaning, config.meaning_dropout, self.training)
        meaning = meaning.view(-1, config.readers, config.meaning_width).transpose(0, 1)
        common = torch.cat([traits, *(shares[name] for name in config.tables)], dim=1)
        read = torch.cat([meaning, common.expand(config.readers, -1, -1)], dim=2)  # [readers, tasks, inputs]
        hidden = functional.dropout(functional.relu(self.lower(read)), config.dropout, self.training)
        hidden = functional.dropout(functional.relu(self.upper(hidden)), config.dropout, self.training)
        certain = [shares[name].max(dim=1).values for name in config.tables]
        return Encoded(logits, hidden, torch.stack([*certain, familiarity], dim=1), pooled.sense)

    def _standard(self, traits: Tensor) -> Tensor:
        """Traits of like size; what lies far out counts no further."""
        return ((traits - self.trait_mean) * self.trait_scale).clamp(-4.0, 4.0)

    def strengths(self, profiles: Tensor) -> Tensor:
        """[agents, strengths] from records [agents, profile_width]; independent of the task, so it can be kept."""
        vectors: Tensor = self.profile(profiles)  # [agents, strengths]
        if self.candidates is not None:
            rows = vectors[None]
            vectors = vectors + self.candidates(rows, rows, rows, need_weights=False)[0][0]
        return vectors

    def judge(self, encoded: Encoded, records: Tensor, strengths: Tensor, trust: float = 1.0) -> tuple[Tensor, Tensor]:
        """Logits of success and of quality, [readers, tasks, agents] each while training, else their mean over readers.

        `records` [tasks, agents, n_sources] are logits: the agent's prior first, then like tasks, then the tables.
        """
        prior = records[:, :, 0]
        gates = torch.sigmoid(self.gates(encoded.context))  # [tasks, n_sources - 1]
        logits = prior + torch.einsum("tas,ts->ta", records[:, :, 1:] - prior[:, :, None], gates)
        residual, better = self.difficulty(encoded.hidden), self.quality(encoded.hidden)  # [readers, tasks, 1]
        residual = residual + self.demand(encoded.hidden) @ strengths.T  # [readers, tasks, agents]
        if not self.training:
            residual, better = residual.mean(dim=0), better.mean(dim=0)
        if self.config.residual:
            logits = logits + trust * residual
        logits = logits * self.temperature
        return logits, logits + trust * better

    def _known(self, grams: Tensor, offsets: Tensor) -> Known:
        rows = self.row_of[grams]
        known = rows > 0
        sizes = self._counted(known, offsets)
        scale = sizes.diff().clamp(min=1).rsqrt()
        if self.training:  # a random part of each task's n-grams, few of a long text: it learns as much and is faster
            share = (self.config.grams_read / sizes.diff().clamp(min=1)).clamp(max=1.0 - self.config.gram_dropout)
            scale = scale / share
            shares = torch.repeat_interleave(share, offsets.diff(), output_size=len(grams))
            known &= torch.rand(grams.shape, device=grams.device) < shares
            sizes = self._counted(known, offsets)
        return Known(rows[known], sizes[:-1].to(torch.int32), scale[:, None])

    @staticmethod
    def _pooled(bag: nn.EmbeddingBag, known: Known) -> Tensor:
        """[tasks, width] sums over n-grams, of the length that a bag of one has. A quantized bag knows sums only."""
        pooled: Tensor = bag(known.rows, known.offsets)
        return pooled * known.scale

    @staticmethod
    def _counted(known: Tensor, offsets: Tensor) -> Tensor:
        """Offsets of what is known alone."""
        return functional.pad(known.cumsum(0), (1, 0))[offsets]


def tensors(features: Features) -> tuple[Tensor, Tensor, Tensor]:
    """N-grams, offsets and traits: the inputs of `labels` and `encode`."""
    return torch.from_numpy(features.grams), torch.from_numpy(features.offsets), torch.from_numpy(features.traits)
