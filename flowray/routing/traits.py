"""What kind of task it is, whatever it is about: numbers that carry over to texts unlike all seen in training.

Length, numbers, mathematics, code, questions, answers to choose from, how many tools there are and how far their
descriptions meet the request. Counts are compressed to log(1 + count); every trait is finite.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from flowray.routing.estimates import Floats, TaskBatch
from flowray.routing.lexicon import CAPITAL, N_KINDS, NUMBER, Ids, Lexicon, Tool

_QUOTED = re.compile(r"'[^'\n]{1,60}'|\"[^\"\n]{1,80}\"|`[^`\n]{1,80}`")

N_TEXT_TRAITS = 5 + 2 * N_KINDS
N_CHOICE_TRAITS = 6
N_TOOL_TRAITS = 11
N_TRAITS = N_TEXT_TRAITS + N_CHOICE_TRAITS + N_TOOL_TRAITS


def kinds_counted(n_tasks: int, lexicon: Lexicon, words: Ids, owners: Ids) -> Floats:
    """[tasks, N_KINDS] how often each kind of words is there: `words` are rows, `owners` whose they are, ascending."""
    counts = np.zeros((n_tasks, N_KINDS), np.float32)
    if len(words):
        begins = np.flatnonzero(changes(owners))
        counts[owners[begins]] = np.add.reduceat(lexicon.kinds[words], begins)
    return counts


def text_traits(texts: list[str], read: list[list[int]], counts: Floats) -> Floats:
    """[tasks, N_TEXT_TRAITS] how long the text is, and how many words of each kind, on their own and as a share.

    `read` are the rows of each text's words, `counts` how many of each kind they are.
    """
    more = np.array(
        [
            (len(text), len(of_task), len(set(of_task)) / (len(of_task) + 1), text.count("\n"), _quotes(text))
            for text, of_task in zip(texts, read, strict=True)
        ],
        np.float32,
    ).reshape(len(texts), 5)
    traits = np.empty((len(texts), N_TEXT_TRAITS), np.float32)
    np.log1p(more[:, :2], out=traits[:, :2])
    np.log1p(counts, out=traits[:, 2 : 2 + N_KINDS])
    np.divide(4.0 * counts, more[:, 1:2] + 1.0, out=traits[:, 2 + N_KINDS : 2 + 2 * N_KINDS])
    traits[:, -3] = more[:, 2]
    np.log1p(more[:, 3:], out=traits[:, -2:])
    return traits


def choice_traits(options_of: list[list[str]], n_options: Floats) -> Floats:
    """[tasks, N_CHOICE_TRAITS] how many answers there are to choose from, how long, how alike, how many are numbers."""
    traits = np.zeros((len(options_of), N_CHOICE_TRAITS), np.float32)
    rows = [row for row, options in enumerate(options_of) if options]
    if rows:
        traits[rows, 3:5] = [_of_choices(options_of[row]) for row in rows]
        traits[rows, :3] = np.log1p([_lengths(options_of[row]) for row in rows])
    np.log1p(_counted(n_options), out=traits[:, 5])
    return traits


def _lengths(options: list[str]) -> tuple[float, float, float]:
    sizes = list(map(len, options))
    return len(sizes), sum(sizes) / len(sizes), max(sizes) - min(sizes)


def _of_choices(options: list[str]) -> tuple[float, float]:
    together = "\n".join(options).lower()
    numbers = len([option for option in options if option[:1].isdigit() or option[:1] in "$-("])
    return numbers / len(options), "of the above" in together or "of these" in together


def tool_traits(
    tasks: TaskBatch, read: list[list[int]], tools: list[list[Tool]], lexicon: Lexicon, of_text: Floats
) -> Floats:
    """[tasks, N_TOOL_TRAITS] how many tools, how far their names and descriptions meet the text."""
    traits = np.zeros((len(tasks), N_TOOL_TRAITS), np.float32)
    rows = [row for row, of_task in enumerate(tools) if of_task]
    if not rows:
        return traits
    values = np.expm1(of_text[:, [2 + NUMBER, 2 + CAPITAL, -1]]).sum(axis=1)  # what may be an argument in the text
    n_tools, n_params = _counted(tasks.n_tools), _counted(tasks.n_params)
    for row in rows:
        asked = lexicon.stems_of(read[row])
        meets, named, dotted, longest = [0.0, 0.0], [0.0, 0.0], 0, 0
        for tool in tools[row]:
            n_stems = len(tool.stems)
            meets.append(len(tool.stems & asked) / ((n_stems + 1) * (len(asked) + 1)) ** 0.5)
            named.append(len(tool.name_stems & asked) / (len(tool.name_stems) + 0.5))
            dotted += tool.n_name > len(tool.name_stems) + 1  # signs or stop words in the name: a module, a method
            longest = max(longest, len(tool.words))
        meets.sort(reverse=True)
        named.sort(reverse=True)
        count = max(float(n_tools[row]), float(len(tools[row])))
        traits[row] = (
            np.log1p(count),
            np.log1p(n_params[row]),
            np.log1p(n_params[row] / count),
            meets[0],
            meets[1],
            sum(meets) / count,
            named[0],
            named[1],
            np.log1p(sum(meet > 0.15 for meet in meets)),
            np.log1p(dotted / count) + np.log1p(longest) / 4,
            np.log1p(values[row] * count / (n_params[row] + 1)),
        )
    return traits


def _counted(numbers: Floats) -> Floats:
    """Numbers that count something: 0 where they are unknown or odd."""
    counted: Floats = np.where(np.isfinite(numbers) & (numbers > 0), numbers, np.float32(0))
    return counted


def _quotes(text: str) -> int:
    return len(_QUOTED.findall(text)) if "'" in text or '"' in text or "`" in text else 0


def changes(ascending: npt.NDArray[np.uint64] | Ids) -> npt.NDArray[np.bool_]:
    """Where a value is not the one before it."""
    changed = np.ones(len(ascending), np.bool_)
    changed[1:] = ascending[1:] != ascending[:-1]
    return changed
