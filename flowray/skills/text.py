"""Measure a text: the small ready-made agent that a first team starts with. Needs nothing but Python."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from flowray.agents import Task, agent

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SENTENCE = re.compile(r"[^.!?…]+[.!?…]*")
_WORDS_PER_MINUTE = 238  # silent reading of English non-fiction: Brysbaert, J. Memory and Language 109 (2019)


@agent(capabilities={"text.statistics"}, tier="secondary")
class TextStatistics:
    """Counts what there is in the prompt, or in the payload when that is a str."""

    def __init__(self, top: int = 5) -> None:
        self._top = top  # how many of the most frequent words to name

    def run(self, task: Task) -> dict[str, Any]:
        """Characters, words, sentences, lines, the most frequent words, and the time to read it in seconds.

        Raises:
            TypeError: the payload is neither absent nor a str.
        """
        text = task.prompt if task.payload is None else task.payload
        if not isinstance(text, str):
            raise TypeError(f"a text is wanted, not {type(text).__name__}")
        words = [word.casefold() for word in _WORD.findall(text)]
        common = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))[: self._top]
        return {
            "characters": len(text),
            "words": len(words),
            "distinct_words": len(set(words)),
            "sentences": sum(1 for part in _SENTENCE.findall(text) if _WORD.search(part)),
            "lines": len(text.splitlines()),
            "most_frequent": [[word, count] for word, count in common],
            "reading_s": round(len(words) * 60 / _WORDS_PER_MINUTE, 1),
        }
