"""Features: the same for a task wherever and with whomever it is read, whatever it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.routing import features, lexicon
from flowray.routing.estimates import TaskBatch
from flowray.routing.features import BUCKETS, N_TRAITS, Features, featurise
from flowray.routing.lexicon import _TOKEN, Lexicon

ANY_TEXT = st.text(st.characters(), max_size=80)  # lone surrogates, controls and unassigned characters too


def of(*texts: str) -> Features:
    return featurise(TaskBatch.of_texts(texts))


def row(of_batch: Features, at: int) -> tuple[list[int], list[float]]:
    return of_batch.grams[of_batch.offsets[at] : of_batch.offsets[at + 1]].tolist(), of_batch.traits[at].tolist()


@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=5))
def test_any_text_has_finite_features_within_bounds(texts):
    read = of(*texts)
    assert read.traits.shape == (len(texts), N_TRAITS)
    assert np.isfinite(read.traits).all()
    assert ((read.grams >= 0) & (read.grams < BUCKETS)).all()
    assert read.offsets[-1] == len(read.grams)
    for at in range(len(texts)):
        words = read.words[read.word_offsets[at] : read.word_offsets[at + 1]].tolist()
        loose = read.loose[read.loose_offsets[at] : read.loose_offsets[at + 1]].tolist()
        assert len(words) == len(set(words))
        assert loose == sorted(set(loose))


@given(text=ANY_TEXT)
def test_n_grams_are_those_of_the_words_and_the_loose_ones(text):
    read = of(text)
    words = [of(word) for word in text.split()]
    assert read.offsets.tolist() == [0, len(read.grams)]
    assert len(read.grams) == int(read.lexicon.sizes[read.words].sum()) + len(read.loose)
    assert {gram for word in words for gram in word.grams} <= set(read.grams) or not text.isascii()


def test_a_word_counts_once_however_often_and_in_whichever_case_it_stands():
    once, often = of("sort"), of("Sort SORT sort")
    assert often.words.tolist() == once.words.tolist()
    assert len(often.loose) == 1


def test_features_outlive_the_lexicon_that_they_were_read_with(monkeypatch):
    read = of("a few plain words")
    before = row(read, 0)
    monkeypatch.setattr(features, "_lexicon", Lexicon())
    of("other words come first now")
    assert row(read, 0) == before


@given(text=ANY_TEXT, others=st.lists(ANY_TEXT, max_size=4))
def test_a_task_reads_the_same_alone_and_among_others(text, others):
    assert row(of(text), 0) == row(of(*others, text), len(others))


def test_a_word_reads_the_same_to_a_lexicon_that_knows_it_and_to_a_new_one(monkeypatch):
    text = "Sort the 12 lists, then explain quicksort's worst case."
    before = row(of(text), 0)
    monkeypatch.setattr(features, "_lexicon", Lexicon())
    of("explain worst things first")
    assert row(of(text), 0) == before


def test_a_full_lexicon_is_forgotten_and_nothing_else_changes(monkeypatch):
    before = row(of("a few plain words"), 0)
    monkeypatch.setattr(features, "LEXICON_WORDS", 10)
    of(" ".join(f"word{chr(97 + n)}" for n in range(26)))
    assert row(of("a few plain words"), 0) == before
    assert len(features._lexicon) < 10


def test_many_spellings_of_few_words_are_forgotten_too(monkeypatch):
    monkeypatch.setattr(features, "LEXICON_WORDS", 30)
    monkeypatch.setattr(features, "_lexicon", Lexicon())
    of(" ".join(f"word{'!' * n}" for n in range(35)) + " " + " ".join(f"{'?' * n}word" for n in range(100)))
    assert len(features._lexicon) < 10
    of("word")
    assert len(features._lexicon._chunks) == 1


@given(text=ANY_TEXT)
def test_words_between_spaces_are_the_words_of_the_whole(text):
    """Splitting at spaces first is only faster."""
    read = Lexicon()
    assert read.read(text, 1_000) == [read[token] for token in _TOKEN.findall(text)]


def test_a_tool_read_before_reads_the_same(monkeypatch):
    monkeypatch.setattr(lexicon, "MAX_TOOLS_KEPT", 2)
    batch = replace(TaskBatch.of_texts(["draw a map"]), tools=("a.map: Draws a map. ; b: Sings. ; c: Sits. ; aMap: x",))
    first, again = featurise(batch), featurise(batch)
    assert row(first, 0) == row(again, 0)


def test_many_tasks_are_read_as_if_one_by_one():
    texts = [f"task number {n} is about {'sums' if n % 2 else 'poems'}" for n in range(200)]
    together = of(*texts)
    assert all(row(together, at) == row(of(texts[at]), 0) for at in (0, 63, 64, 65, 128, 199))


def test_an_empty_text_has_no_grams_and_a_megabyte_is_read_in_part():
    empty, long = of(""), of("mega byte " * 100_000)
    assert len(empty.grams) == 0
    assert not empty.traits.any()
    assert len(long.grams) < 100
    assert len(long.words) < 5
    assert np.isfinite(long.traits).all()


def test_no_tasks_at_all():
    assert len(of()) == 0


def test_compatibility_forms_of_a_character_are_one():
    assert row(of("ﬁnd"), 0)[0] == row(of("find"), 0)[0]


@given(st.integers(0, 5), st.lists(st.integers(0, 3), max_size=6))
def test_take_gives_the_rows_asked_for(seed, rows):
    texts = [f"{seed} words {n} and {'more ' * n}" for n in range(4)]
    taken = of(*texts).take(np.array(rows, np.intp))
    assert [row(taken, at) for at in range(len(rows))] == [row(of(*texts), at) for at in rows]


def test_choices_in_a_column_are_read_like_choices_in_the_text_whatever_their_notation():
    batch = TaskBatch.of_texts(["Which is red?"] * 2)
    dicts = ("{'text': ['a ripe cherry', 'green grass'], 'label': ['A', 'B']}", "['a ripe cherry', 'green grass']")
    read = featurise(replace(batch, choices=dicts))
    assert row(read, 0) == row(read, 1)
    assert set(row(of("cherry"), 0)[0]) <= set(row(read, 0)[0])


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -3.0, 1e30])
def test_odd_counts_of_tools_and_options_stay_finite(number):
    odd = np.array([number], np.float32)
    batch = replace(TaskBatch.of_texts(["do it"]), tools=("run: Runs it.",), n_tools=odd, n_params=odd, n_options=odd)
    assert np.isfinite(featurise(batch).traits).all()


def test_a_tool_that_meets_the_request_is_told_from_one_that_does_not():
    asked = TaskBatch.of_texts(["What is the weather in Paris tomorrow?"] * 2)
    tools = ("weather.forecast: Forecast the weather of a city.", "matrix_multiply: Multiplies two matrices.")
    read = featurise(replace(asked, tools=tools, n_tools=np.ones(2, np.float32), n_params=np.ones(2, np.float32)))
    assert (read.traits[0, -8:-2] >= read.traits[1, -8:-2]).all()
    assert read.traits[0, -8] > read.traits[1, -8]
