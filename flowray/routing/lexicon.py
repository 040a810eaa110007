"""Words that were met before, and what features need of each: hashes, n-grams, stem and kind.

Taking a word apart costs some twenty microseconds, looking it up a tenth of one; so each word is taken apart once and
then is a row of arrays. Ways to write one word ("The", "the"; any two numbers of three digits) are rows of one form;
n-grams are of forms, so whatever is worked out from n-grams can be kept per form too (`flowray.routing.folding`). A
lexicon is a cache and nothing else: what it says of a word does not depend on the words before it, save its number.
"""

from __future__ import annotations

import re
import threading
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

GRAM_SIZES = (3, 4, 5)  # characters of a word's n-grams, its ends marked by < and >
BUCKET_BITS = 20  # two n-grams share a bucket now and then; a network keeps the rows worth it (`vocabulary`)
BUCKETS = 1 << BUCKET_BITS
MAX_WORD = 24  # longer words are identifiers or noise: their n-grams are those of the first characters

MAX_CHUNK = 40  # characters between two spaces; of longer ones nothing is kept
MAX_TOOLS_KEPT = 4_096  # tools whose words are kept, before all are forgotten

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_STOP = frozenset(
    """
    a an the of to in for and or is are be with on by from at as it that this i me my you your can could please what
    how which find get calculate given using use need want s t do does did will would if so also then
    """.split()  # noqa: SIM905 - forty lines of quotes are not easier to read
)
_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "es", "ed", "ly", "al", "s", "e")

# What a word may be by its letters; each is counted over a text.
_LISTED: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "and",
        "or",
        "also then additionally next finally furthermore lastly second another both each",
        "not except never no none false",
        "what which who whom when where whose",
        "how why explain describe",
        "calculate compute solve find determine evaluate many much total sum area volume",
        "def function return class import code python java javascript string array list",
        "write create make generate give implement show tell",
        "true correct incorrect following best most",
        ". !",
        "?",
        ", ;",
        "+ - * / < > = ^ % ~",
        "( ) [ ]",
        "{ } _",
        "\\ $",
        ":",
        "' \" `",
    )
)
CAPITAL, UPPER, NUMBER, DIGITS, LETTERS, FOREIGN = range(len(_LISTED), len(_LISTED) + 6)
N_KINDS = len(_LISTED) + 6


class Tool(NamedTuple):
    """What was read of a tool; never to be changed."""

    n_name: int  # words of its name
    words: list[int]  # rows of the words of its name and description
    name_stems: set[int]
    stems: set[int]


class Lexicon(dict[str, int]):
    """From a word, as it is written, to its row in the arrays.

    Safe to use by several threads: arrays grow by being replaced, and a row is announced after it is written.
    """

    def __init__(self) -> None:
        self.forms: Ids = np.zeros(1024, np.int64)  # [words] number of the word's form
        self.stems: list[int] = []  # [words] hash of its stem, 0 for stop words and signs; looked up one by one
        self.kinds = np.zeros((1024, N_KINDS), np.float32)  # [words, kinds] how often each kind applies
        self.hashes: Hashes = np.zeros(1024, np.uint64)  # [forms]
        self.starts: Ids = np.zeros(1024, np.int64)  # [forms] where its n-grams begin in `grams`
        self.sizes: Ids = np.zeros(1024, np.int64)  # [forms] and how many they are, the form itself among them
        self.grams: Ids = np.zeros(16_384, np.int64)  # buckets
        self._number: dict[str, int] = {}  # form -> number
        self._chunks: dict[str, tuple[int, ...]] = {}  # what stands between two spaces -> rows of its words
        self._tools: dict[str, Tool] = {}
        self._n_grams = 0
        self._growing = threading.Lock()

    @property
    def n_forms(self) -> int:
        """Forms met so far: their numbers are 0, 1, ..."""
        return len(self._number)

    @property
    def held(self) -> int:
        """How full it is, in words: two spellings of a chunk ("word", "word,") take about the room of one word."""
        return max(len(self), len(self._chunks) // 2)

    def read(self, text: str, max_tokens: int) -> list[int]:
        """The rows of a text's words, numbers and signs.

        No word contains a space, and most of what stands between two spaces was met before: splitting at spaces and
        looking up takes a third of the time that looking for words does.
        """
        chunks = self._chunks
        rows: list[int] = []
        for chunk in text.split():
            known = chunks.get(chunk)
            rows += self._chunk(chunk) if known is None else known
        return rows[:max_tokens]

    def _chunk(self, chunk: str) -> tuple[int, ...]:
        rows = tuple(map(self.__getitem__, _TOKEN.findall(chunk)))
        if len(chunk) <= MAX_CHUNK:
            self._chunks[chunk] = rows
        return rows

    def tool(self, text: str, max_tokens: int) -> Tool:
        """The words of one tool, "name: description". A team's tools are the same at every task, so they are kept."""
        found = self._tools.get(text)
        if found is None:
            name = self.read(_CAMEL.sub(" ", text.partition(":")[0]), max_tokens)
            words = self.read(_CAMEL.sub(" ", text), max_tokens)
            found = Tool(len(name), words, self.stems_of(name), self.stems_of(words))
            if len(self._tools) >= MAX_TOOLS_KEPT:
                self._tools = {}
            self._tools[text] = found
        return found

    def stems_of(self, words: list[int]) -> set[int]:
        """The distinct stems of some words."""
        stems = set(map(self.stems.__getitem__, words))
        stems.discard(0)
        return stems

    def __missing__(self, token: str) -> int:
        with self._growing:
            row = self.get(token)
            if row is None:
                row = len(self)
                self._write(row, token)
                self[token] = row  # last, so that no other thread finds a row half written
            return row

    def _write(self, row: int, token: str) -> None:
        if row == len(self.forms):
            for name in ("forms", "kinds"):
                setattr(self, name, _doubled(getattr(self, name)))
        word = token.lower()
        shown = f"<{len(word)} digits>" if word.isdigit() and len(word) > 2 else word  # numbers have few repeats
        form = self._number.get(shown)
        if form is None:
            form = len(self._number)
            self._write_form(form, shown, word)
            self._number[shown] = form
        self.forms[row] = form
        self.stems.append(int(_hash(_stem(word))) if word.isalnum() and word not in _STOP else 0)
        kinds = self.kinds[row]
        kinds[: len(_LISTED)] = [word in listed for listed in _LISTED]
        kinds[CAPITAL] = token.istitle() and token.isalpha()
        kinds[UPPER] = len(token) > 1 and token.isupper()
        kinds[NUMBER] = word.isdigit()
        kinds[DIGITS] = len(word) if word.isdigit() else 0
        kinds[LETTERS] = len(word) if word.isalpha() else 0
        kinds[FOREIGN] = 0 if token.isascii() else len(token)

    def _write_form(self, form: int, shown: str, word: str) -> None:
        if form == len(self.hashes):
            for name in ("hashes", "starts", "sizes"):
                setattr(self, name, _doubled(getattr(self, name)))
        hashes = np.array([_hash(gram) for gram in [shown, *(_n_grams(word) if word.isalpha() else [])]], np.uint64)
        grams = np.unique(buckets_of(hashes))  # a word repeats an n-gram now and then; that says little
        while self._n_grams + len(grams) > len(self.grams):
            self.grams = _doubled(self.grams)
        self.grams[self._n_grams : self._n_grams + len(grams)] = grams
        self.hashes[form], self.starts[form], self.sizes[form] = hashes[0], self._n_grams, len(grams)
        self._n_grams += len(grams)


def buckets_of(hashes: Hashes) -> Ids:
    """The upper bits after one more round of mixing: what was multiplied once is not yet even in them."""
    mixed = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)


def _n_grams(word: str) -> list[str]:
    marked = f"<{word[:MAX_WORD]}>"
    return [marked[at : at + size] for size in GRAM_SIZES for at in range(len(marked) - size + 1)]


def _stem(word: str) -> str:
    return next((word[: -len(end)] for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= 3), word)


def _hash(text: str) -> np.uint64:
    """64 bits of which the upper ones are well mixed (multiplication by an odd number, after a checksum)."""
    checksum = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    return np.uint64((checksum * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & 0xFFFFFFFFFFFFFFFF)


def _doubled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([values, np.zeros_like(values)])
