"""What a router reads of a task: one versioned pure function, shared by training and serving.

Two views of the same words. N-grams: each distinct word of the text and its choices with its character n-grams, each
distinct pair of neighbouring words, and each distinct word of the tools, hashed into `BUCKETS` buckets, for an
embedding bag (as fastText does: a bucket may hold several n-grams). What a bag makes of a text is therefore a sum over
its distinct words, and can be kept per word (`flowray.routing.folding`): `Features` holds words and pairs, and spells
out n-grams only when asked. Traits (`flowray.routing.traits`) say what kind of task it is. N-grams need training on
similar texts; traits carry over to kinds of texts never seen in training.

Words are remembered (`flowray.routing.lexicon`), the rest is arithmetic on arrays over the whole batch. Only the first
and last characters of a long text are read (`MAX_CHARS`); an empty one has no n-grams and zero counts.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats, TaskBatch
from flowray.routing.lexicon import BUCKET_BITS, BUCKETS, Hashes, Ids, Lexicon, buckets_of
from flowray.routing.traits import (
    N_TOOL_TRAITS,
    N_TRAITS,
    changes,
    choice_traits,
    kinds_counted,
    text_traits,
    tool_traits,
)

__all__ = ["BUCKETS", "FEATURES_VERSION", "N_TRAITS", "Features", "featurise"]

FEATURES_VERSION = 2  # raised by every change that gives another value for the same task
MAX_CHARS = 6_000  # of a text: two thirds from its beginning, one third from its end
MAX_TOKENS = 1_500  # of a text, its choices and each of its tools; bounds the time of one task
MAX_TOOLS = 64  # tools looked at one by one
LEXICON_WORDS = (
    100_000  # remembered before all are forgotten; some 75 MB, and as much again in a network that folds them
)
_AT_ONCE = 64  # tasks; their words fit the processor's cache, their numbers 6 bits and the words' places 26
_PLACE_SHIFT, _PLACES = np.uint64(26), np.uint64((1 << 26) - 1)
_HALF = np.uint64(32)
_PAIR = np.uint64(0xD6E8FEB86659FD93)  # sets the first word of a pair apart from the second

_OPTION = re.compile(r"^\(?[A-J][.):]\s+(.*)$", re.MULTILINE)
_STATED = re.compile(r"'([^'\n]+)'|\"([^\"\n]+)\"")
_NOT_OPTIONS = frozenset({"text", "label", *"ABCDEFGHIJ"})
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_lexicon = Lexicon()


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """A batch of tasks in numbers."""

    lexicon: Lexicon  # that the words are numbered by; kept here, so that it may be forgotten elsewhere
    words: Ids  # [distinct words of all tasks] forms, in an order that depends on the words alone
    word_offsets: Ids  # [tasks + 1] where each task's words begin and end
    loose: Ids  # [distinct pairs of words, and words of tools] their buckets, ascending within a task, 0..BUCKETS-1
    loose_offsets: Ids  # [tasks + 1]
    traits: Floats  # [tasks, N_TRAITS] finite; counts are compressed to log(1 + count)

    def __len__(self) -> int:
        return len(self.traits)

    @property
    def grams(self) -> Ids:
        """[n-grams of all tasks] buckets: those of each task's words, then its loose ones. Made anew at each call."""
        sizes = self.lexicon.sizes[self.words]
        of_words = self.lexicon.grams[_ranges(self.lexicon.starts[self.words], sizes)]
        grams = np.empty(len(of_words) + len(self.loose), np.int64)
        n_loose = self.loose_offsets[1:] - self.loose_offsets[:-1]
        is_loose = np.zeros(len(grams), np.bool_)
        is_loose[_ranges(self.offsets[1:] - n_loose, n_loose)] = True
        grams[is_loose], grams[~is_loose] = self.loose, of_words
        return grams

    @property
    def offsets(self) -> Ids:
        """[tasks + 1] where each task's n-grams begin and end."""
        return _offsets(self.lexicon.sizes[self.words])[self.word_offsets] + self.loose_offsets

    def take(self, rows: npt.NDArray[np.intp]) -> Features:
        """Some of the tasks, in the order of `rows`."""
        words, word_offsets = _taken(self.words, self.word_offsets, rows)
        loose, loose_offsets = _taken(self.loose, self.loose_offsets, rows)
        return Features(
            lexicon=self.lexicon,
            words=words,
            word_offsets=word_offsets,
            loose=loose,
            loose_offsets=loose_offsets,
            traits=self.traits[rows],
        )


def featurise(tasks: TaskBatch) -> Features:
    """The features of each task: the same on every machine, for any Unicode, never NaN."""
    global _lexicon
    if _lexicon.held > LEXICON_WORDS:
        _lexicon = Lexicon()
    lexicon = _lexicon  # one for the whole batch, whatever other threads do
    if len(tasks) == 1 and not (tasks.choices[0] or tasks.tools[0]):
        return _featurise_text(tasks, lexicon)
    if len(tasks) <= _AT_ONCE:
        return _featurise(tasks, lexicon)
    parts = [_featurise(tasks.take(slice(at, at + _AT_ONCE)), lexicon) for at in range(0, len(tasks), _AT_ONCE)]
    return Features(
        lexicon=lexicon,
        words=np.concatenate([part.words for part in parts]),
        word_offsets=_offsets(np.concatenate([np.diff(part.word_offsets) for part in parts])),
        loose=np.concatenate([part.loose for part in parts]),
        loose_offsets=_offsets(np.concatenate([np.diff(part.loose_offsets) for part in parts])),
        traits=np.concatenate([part.traits for part in parts]),
    )


def _featurise_text(tasks: TaskBatch, lexicon: Lexicon) -> Features:
    """As `_featurise`, of one task that is a text alone: there is nobody else's that must be kept apart."""
    text = _clipped(tasks.texts[0])
    read = lexicon.read(text, MAX_TOKENS)
    rows = np.array(read, np.int64)
    forms = lexicon.forms[rows]
    hashes = lexicon.hashes[forms]
    distinct = _distinct((hashes >> _HALF) << _PLACE_SHIFT)
    loose = buckets_of(hashes[:-1] * _PAIR + hashes[1:])
    loose.sort()
    loose = loose[changes(loose)]
    counts = lexicon.kinds[rows].sum(axis=0, keepdims=True)
    return Features(
        lexicon=lexicon,
        words=forms[distinct],
        word_offsets=np.array((0, len(distinct)), np.int64),
        loose=loose,
        loose_offsets=np.array((0, len(loose)), np.int64),
        traits=np.concatenate(
            (
                text_traits([text], [read], counts),
                choice_traits([_options(text, "")], tasks.n_options),
                np.zeros((1, N_TOOL_TRAITS), np.float32),
            ),
            axis=1,
        ),
    )


def _featurise(tasks: TaskBatch, lexicon: Lexicon) -> Features:
    n_tasks = len(tasks)
    texts = [_clipped(text) for text in tasks.texts]
    read = [lexicon.read(text, MAX_TOKENS) for text in texts]
    options = [_options(text, stated) for text, stated in zip(texts, tasks.choices, strict=True)]
    chosen = [
        lexicon.read(_listed(of_task), MAX_TOKENS) if stated else []  # else they are in the text
        for stated, of_task in zip(tasks.choices, options, strict=True)
    ]
    tools = [
        [lexicon.tool(tool, MAX_TOKENS) for tool in _clipped(text).split(" ; ")[:MAX_TOOLS]] if text else []
        for text in tasks.tools
    ]
    # The text's and the choices' words are n-grams of one kind; those of tools are of another: they say what could be
    # done, not what is asked.
    rows, owners = _flat([*read, *chosen], n_tasks)
    forms = lexicon.forms[rows]
    hashes = lexicon.hashes[forms]
    distinct = _distinct((owners.astype(np.uint64) << np.uint64(58)) | ((hashes >> _HALF) << _PLACE_SHIFT))
    together = owners[1:] == owners[:-1]  # no pair of the last word of one task with the first of the next
    pairs = buckets_of(hashes[:-1] * _PAIR + hashes[1:])
    keys = ((owners[1:] << BUCKET_BITS) | pairs)[together]
    if any(tools):
        described, tool_owners = _flat(
            [list(chain.from_iterable(tool.words for tool in of_task)) for of_task in tools], n_tasks
        )
        of_tools = buckets_of(lexicon.hashes[lexicon.forms[described]] * np.uint64(0xA0761D6478BD642F))
        keys = np.concatenate([keys, (tool_owners << BUCKET_BITS) | of_tools])
    keys.sort()  # by task, then bucket
    keys = keys[changes(keys)]
    text_words = sum(map(len, read))
    counts = kinds_counted(n_tasks, lexicon, rows[:text_words], owners[:text_words])
    return Features(
        lexicon=lexicon,
        words=forms[distinct],
        word_offsets=_offsets(np.bincount(owners[distinct], minlength=n_tasks)),
        loose=keys & (BUCKETS - 1),
        loose_offsets=_offsets(np.bincount(keys >> BUCKET_BITS, minlength=n_tasks)),
        traits=np.concatenate(
            [
                of_text := text_traits(texts, read, counts),
                choice_traits(options, tasks.n_options),
                tool_traits(tasks, read, tools, lexicon, of_text),
            ],
            axis=1,
        ),
    )


def _distinct(keys: Hashes) -> Ids:
    """Where each task's distinct words stand, by task and then by hash: how often a text repeats itself says little.

    Task, the upper 32 bits of the hash and place share one number, so that one plain sort does it; places are not in
    `keys` yet.
    """
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    places = (keys & _PLACES).astype(np.int64)
    return places[changes(keys >> _PLACE_SHIFT)]


def _options(text: str, stated: str) -> list[str]:
    """The answers to choose from, without the notation that they are stated in: it betrays where a task comes from."""
    if stated:
        found = [one or other for one, other in _STATED.findall(_clipped(stated))]
        return [option for option in found if option not in _NOT_OPTIONS][:MAX_TOOLS]
    return _OPTION.findall(text)[:MAX_TOOLS] if "\nA" in text or "\n(A" in text else []


def _listed(options: list[str]) -> str:
    """Answers as they stand in most texts."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False))


def _clipped(text: str) -> str:
    """The beginning and the end of a text, with the many ways to write one character made one."""
    if len(text) > MAX_CHARS:
        text = text[: MAX_CHARS * 2 // 3] + "\n" + text[-MAX_CHARS // 3 :]
    return text if text.isascii() else unicodedata.normalize("NFKC", text)[:MAX_CHARS]


def _flat(of_fields: list[list[int]], n_tasks: int) -> tuple[Ids, Ids]:
    """The words of some fields one after the other, and whose task each is."""
    sizes = np.array([len(words) for words in of_fields], np.int64)
    words = np.fromiter(chain.from_iterable(of_fields), np.int64, int(sizes.sum()))
    return words, np.repeat(np.arange(len(of_fields)) % max(n_tasks, 1), sizes)


def _taken(values: Ids, offsets: Ids, rows: npt.NDArray[np.intp]) -> tuple[Ids, Ids]:
    """The values of some of the tasks."""
    sizes = np.diff(offsets)[rows]
    return values[_ranges(offsets[:-1][rows], sizes)], _offsets(sizes)


def _offsets(sizes: Ids) -> Ids:
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def _ranges(starts: Ids, sizes: Ids) -> Ids:
    """start, start + 1, ... for each start, `size` numbers each."""
    ends = np.cumsum(sizes)
    numbers: Ids = np.arange(ends[-1] if len(ends) else 0, dtype=np.int64) + np.repeat(starts - (ends - sizes), sizes)
    return numbers
