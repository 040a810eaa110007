"""Reading word by word comes to the same as reading n-gram by n-gram, whatever happened before."""

from __future__ import annotations

import copy
import pickle
import threading
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowray.routing import features as reading
from flowray.routing.estimates import TaskBatch
from flowray.routing.features import BUCKETS, featurise
from flowray.routing.folding import Folded
from flowray.routing.lexicon import Lexicon

ANY_TEXT = st.text(st.characters(), max_size=80)
TEXTS = ("sort these numbers", "write a sonnet", "", "name the capital of Peru, then of Chile", "12 and 1234")


@cache
def bags(rows: int = 200) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Two bags of which every n-gram has a row or none."""
    generator = torch.Generator().manual_seed(0)
    row_of = torch.randint(rows, (BUCKETS,), generator=generator, dtype=torch.int32)
    return [torch.randn(rows, width, generator=generator) for width in (3, 5)], row_of


def read_by_n_grams(texts, weights, row_of) -> torch.Tensor:
    read = featurise(TaskBatch.of_texts(texts))
    rows = row_of[torch.from_numpy(read.grams)].long()
    whole = torch.cat([*weights, torch.ones(len(weights[0]), 1)], dim=1)[rows] * (rows > 0)[:, None]
    each = np.diff(read.offsets).tolist()
    return torch.stack([part.sum(dim=0) for part in whole.split(each)]) if texts else whole[:0]


def by_words(folded: Folded, texts) -> torch.Tensor:
    return folded.pooled(featurise(TaskBatch.of_texts(texts)))


@settings(deadline=None)  # the first draw makes a million random rows
@given(st.lists(ANY_TEXT, max_size=5))
def test_any_text_is_read_the_same_both_ways(texts):
    weights, row_of = bags()
    torch.testing.assert_close(
        by_words(Folded(weights, row_of), texts), read_by_n_grams(texts, weights, row_of), atol=1e-4, rtol=1e-4
    )


def test_words_that_come_later_are_folded_too():
    weights, row_of = bags()
    folded = Folded(weights, row_of)
    for texts in (TEXTS[:1], TEXTS, ("quite new words", *TEXTS)):
        torch.testing.assert_close(
            by_words(folded, texts), read_by_n_grams(texts, weights, row_of), atol=1e-4, rtol=1e-4
        )


def test_a_forgotten_lexicon_and_a_full_one_change_nothing(monkeypatch):
    weights, row_of = bags()
    folded = Folded(weights, row_of)
    before = featurise(TaskBatch.of_texts(TEXTS))
    expected = folded.pooled(before)
    monkeypatch.setattr(reading, "_lexicon", Lexicon())
    torch.testing.assert_close(by_words(folded, ("words that come first now", *TEXTS))[1:], expected)
    torch.testing.assert_close(folded.pooled(before), expected)
    bounded = Folded(weights, row_of, max_words=2)
    torch.testing.assert_close(bounded.pooled(before), expected, atol=1e-4, rtol=1e-4)


def test_what_was_read_in_inference_mode_can_be_read_without_and_the_other_way_round():
    weights, row_of = bags()
    folded = Folded(weights, row_of)
    with torch.inference_mode():
        first = by_words(folded, TEXTS[:1])
    torch.testing.assert_close(by_words(folded, TEXTS)[:1], first.clone())
    with torch.inference_mode():
        torch.testing.assert_close(by_words(folded, ("more and more", TEXTS[0]))[1:], first)


def test_threads_that_meet_new_words_at_once_read_the_same():
    weights, row_of = bags()
    folded = Folded(weights, row_of)
    texts = [f"{chr(97 + n % 26)}{'xyz'[n % 3]}word about{chr(97 + n // 26)} things" for n in range(600)]
    found: dict[int, torch.Tensor] = {}

    def read(number: int) -> None:
        found[number] = torch.cat([by_words(folded, texts[at : at + 20]) for at in range(0, 600, 20)])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = read_by_n_grams(texts, weights, row_of)
    for each in found.values():
        torch.testing.assert_close(each, expected, atol=1e-4, rtol=1e-4)
    assert len(found) == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_weights_changed_in_place_or_in_a_copy_are_read_as_they_are_now(copied):
    from .routers import trained

    network = copied(trained().network)
    features = featurise(TaskBatch.of_texts(TEXTS))
    before = network.read(features).logits["task_type"]
    with torch.no_grad():
        network.label_bag.weight.mul_(3.0)
    assert not torch.allclose(network.read(features).logits["task_type"], before)
    torch.testing.assert_close(trained().network.read(features).logits["task_type"], before)
