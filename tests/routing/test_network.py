"""The network's laws: what it must not look at, and what it falls back to."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowray.routing.estimates import TaskBatch
from flowray.routing.features import featurise
from flowray.routing.network import NetworkConfig, RoutingNetwork, tensors

CONFIG = NetworkConfig(
    heads={"kind": ("a", "b", "c")},
    tables=("kind",),
    rows=64,
    label_width=8,
    meaning_width=8,
    hidden=16,
    attention=True,
    batch_norm=True,
)
SUMS = {"wide": ("fine", (0, 1, 0, 1, 1))}
TEXTS = ("sort these numbers", "write a sonnet", "name the capital of Peru", "")


@pytest.fixture
def network() -> RoutingNetwork:
    torch.manual_seed(0)
    made = RoutingNetwork(CONFIG).eval()
    grams = featurise(TaskBatch.of_texts(TEXTS)).grams
    made.learn_words(torch.from_numpy(np.unique(grams)[:63]))
    torch.nn.init.normal_(made.difficulty.weight)
    torch.nn.init.normal_(made.demand.weight)
    return made


def inputs(n_agents: int = 3, texts: tuple[str, ...] = TEXTS):
    rng = np.random.default_rng(0)
    records = torch.from_numpy(rng.normal(size=(len(texts), n_agents, CONFIG.n_sources)).astype(np.float32))
    profiles = torch.from_numpy(rng.normal(size=(n_agents, CONFIG.profile_width)).astype(np.float32))
    return tensors(featurise(TaskBatch.of_texts(texts))), torch.full((len(texts),), 0.5), records, profiles


def judge(network, trust=1.0, agents=slice(None), texts=TEXTS):
    features, familiarity, records, profiles = inputs(texts=texts)
    with torch.inference_mode():
        encoded = network.encode(*features, familiarity)
        strengths = network.strengths(profiles[agents])
        return network.judge(encoded, records[:, agents], strengths, trust)[0]


def test_shapes(network):
    features, familiarity, _, profiles = inputs()
    encoded = network.encode(*features, familiarity)
    assert encoded.logits["kind"].shape == (4, 3)
    assert encoded.hidden.shape == (3, 4, 16)
    assert network.strengths(profiles).shape == (3, CONFIG.strengths)
    assert judge(network).shape == (4, 3)


def test_the_order_of_candidates_does_not_matter(network):
    order = [2, 0, 1]
    torch.testing.assert_close(judge(network)[:, order], judge(network, agents=order))


def test_candidates_look_at_one_another_only_with_attention(network):
    alone = RoutingNetwork(NetworkConfig(**{**CONFIG.as_dict(), "attention": False})).eval()
    alone.learn_words(network.vocabulary)
    torch.nn.init.normal_(alone.demand.weight)
    torch.testing.assert_close(judge(alone)[:, :2], judge(alone, agents=[0, 1]))
    assert not torch.allclose(judge(network)[:, :2], judge(network, agents=[0, 1]))


def test_without_trust_the_records_alone_decide(network):
    """Whatever the text makes of the task, the answer lies between what the records say."""
    _, _, records, _ = inputs()
    untrusting = judge(network, trust=0.0)
    spread = (records[:, :, 1:] - records[:, :, :1]).abs().sum(dim=2)
    assert ((untrusting - records[:, :, 0]).abs() <= spread + 1e-5).all()
    assert not torch.allclose(untrusting, judge(network))


def test_n_grams_outside_the_vocabulary_are_not_read(network):
    features, familiarity, _, _ = inputs(texts=("sort these numbers", "sort these numbers zyxwvut"))
    traits = features[2][:1].expand(2, -1)  # the longer text has more letters; that is not the question here
    known = network.encode(*features[:2], traits, familiarity[:2]).logits["kind"]
    shared = torch.isin(features[0], network.vocabulary)
    assert 0 < int(shared.sum()) < len(features[0])
    torch.testing.assert_close(known[0], known[1])


def test_a_task_is_encoded_the_same_alone_and_among_others(network):
    features, familiarity, *_ = inputs()
    alone, *_ = inputs(texts=TEXTS[1:2])
    whole = network.encode(*features, familiarity).hidden[:, 1:2]
    torch.testing.assert_close(whole, network.encode(*alone, familiarity[:1]).hidden)


def test_training_reads_a_part_of_the_n_grams(network):
    network.train()
    features, *_ = inputs()
    with torch.no_grad():
        first, second = (network.label_bag.weight.norm() * network.labels(*features)["kind"] for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("in_numpy", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"batch_norm": False, "attention": False}, {"label_traits": 0}, {"readers": 1}, {"sums": SUMS}]
)
def test_what_is_served_is_what_was_learned(in_numpy, changes):
    """Training reads n-grams with torch, serving reads words with numpy."""
    heads = {"kind": ("a", "b", "c"), "fine": tuple("vwxyz")} | ({"wide": ("d", "e")} if "sums" in changes else {})
    network = RoutingNetwork(replace(CONFIG, heads=heads, tables=tuple(heads), **changes)).eval()
    network.in_numpy = in_numpy
    network.learn_words(torch.from_numpy(np.unique(featurise(TaskBatch.of_texts(TEXTS)).grams)[::2][:63]))
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point() and tensor.ndim:
            values = torch.rand(tensor.shape) + 0.5 if "var" in name or "scale" in name else torch.randn(tensor.shape)
            tensor.data.copy_(values * 0.3)
    features, familiarity, *_ = inputs()
    with torch.inference_mode():
        learned = network.encode(*features, familiarity)
        served = network.read(featurise(TaskBatch.of_texts(TEXTS)), familiarity)
        later = network.read(featurise(TaskBatch.of_texts(TEXTS))).familiar(familiarity)
    for name in ("hidden", "context", "sense"):
        torch.testing.assert_close(getattr(served, name), getattr(learned, name), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(getattr(served, name), getattr(later, name))
    assert served.logits.keys() == learned.logits.keys()
    for head in heads:
        torch.testing.assert_close(served.logits[head], learned.logits[head], atol=1e-4, rtol=1e-4)


def test_weights_changed_in_place_are_served_as_they_are_now(network):
    features = featurise(TaskBatch.of_texts(TEXTS))
    before = network.read(features)
    with torch.no_grad():
        network.upper.weight.mul_(2.0)
        network.heads["kind"].bias.add_(1.0)
    after = network.read(features)
    assert not torch.allclose(after.hidden, before.hidden)
    torch.testing.assert_close(after.logits["kind"], before.logits["kind"] + 1.0)


def test_sense_is_of_length_one_or_nothing(network):
    with torch.no_grad():
        torch.nn.init.normal_(network.sense_bag.weight)
    lengths = network.sense(featurise(TaskBatch.of_texts(TEXTS))).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_the_shape_survives_being_written_down():
    assert NetworkConfig.of_dict(json.loads(json.dumps(CONFIG.as_dict()))) == CONFIG


@pytest.mark.parametrize("changes", [{}, {"residual": False}, {"tables": ()}])
@pytest.mark.parametrize("trust", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], ()])
def test_what_is_served_judges_as_what_was_learned(changes, trust, texts):
    torch.manual_seed(1)
    made = RoutingNetwork(NetworkConfig(**{**CONFIG.as_dict(), **changes})).eval()
    for module in (made.difficulty, made.demand, made.quality, made.gates):
        torch.nn.init.normal_(module.weight)
    made.temperature.fill_(1.3)
    features = featurise(TaskBatch.of_texts(texts))
    rng = np.random.default_rng(0)
    records = rng.normal(size=(len(texts), 3, made.config.n_sources)).astype(np.float32)
    records[:, :, 0] = records[:1, :, 0]  # an agent's prior is that of every task
    strengths = torch.from_numpy(rng.normal(size=(3, CONFIG.strengths)).astype(np.float32))
    familiarity = np.linspace(0.2, 0.9, len(texts), dtype=np.float32)
    with torch.inference_mode():
        encoded = made.read(features, torch.from_numpy(familiarity))
        learned = made.judge(encoded, torch.from_numpy(records), strengths, trust)
    prior = records[0, :, 0] if len(texts) else np.zeros(3, np.float32)
    sources = records[:, :, 1:].swapaxes(1, 2)
    read = made.serve(features, logits=False)
    served = made.laid_out().judge(read, familiarity, prior, sources, strengths.numpy(), trust)
    for one, other in zip(served, learned, strict=True):
        assert one == pytest.approx(other.numpy(), abs=1e-4)
