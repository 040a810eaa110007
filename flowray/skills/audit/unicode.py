"""Source that does not say what it seems to say. Called for by files with anything but ASCII.

Bidirectional controls reorder what a reader sees ("Trojan Source", CVE-2021-42574); letters of another script look like
Latin ones (CVE-2021-42694); invisible characters make two names different that look the same.
"""

from __future__ import annotations

import io
import re
import tokenize
import unicodedata
from collections.abc import Iterator
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding
from flowray.skills.audit.sources import Measures, Source, each_source

SKILL = "unicode"

_PER_FILE = 40  # findings for one file

_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_MARKS = "\u061c\u200e\u200f"  # implicit marks: they reorder less, and right-to-left text needs them
_INVISIBLE = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\u3164\ufeff\uffa0"
)
_HAZARD = re.compile(f"[{_BIDI}{_MARKS}{_INVISIBLE}\U000e0000-\U000e007f\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")

# Cyrillic, Greek and Armenian letters that most fonts draw like the Latin one (a choice from Unicode's confusables).
_LOOKALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458\u04bb\u0501\u051b\u051d\u0410\u0412"
    "\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0405\u0406\u0408\u050c\u03b1\u03bf"
    "\u03bd\u03c1\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u0261\u0131\u0585\u057d\u0570\u0578\u0581",
    "aeopcyxsijhdqwABEKMHOPCTYXSIJGaovpABEZHIKMNOPTYXgiouhng",
)


@agent(capabilities={"audit.unicode"}, tier="specialist")
class UnicodeSpecialist:
    """Finds characters that deceive a reader."""

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings for the task's files."""
        return each_source(task.payload, ctx, SKILL, _check)


def _check(source: Source) -> tuple[list[Finding], Measures]:
    found = [*_characters(source), *_identifiers(source)]
    return sorted(found, key=lambda f: (f.rank, f.place))[:_PER_FILE], {}


def _characters(source: Source) -> Iterator[Finding]:
    for number, line in enumerate(source.lines, 1):
        for match in _HAZARD.finditer(line):
            yield _hazard(source.file, number, match.start() + 1, match.group())


def _hazard(file: str, line: int, column: int, character: str) -> Finding:
    name = f"U+{ord(character):04X} {unicodedata.name(character, 'control character')}"
    if character in _BIDI:
        what = ("bidirectional-control", "high", f"{name} makes code appear in another order than it runs")
    elif 0xE0000 <= ord(character) <= 0xE007F:
        what = ("hidden-text", "high", f"{name}: text that no editor shows")
    elif character in _MARKS:
        what = ("bidirectional-mark", "low", f"{name} is invisible and changes the order of what follows")
    elif character in _INVISIBLE:
        what = ("invisible-character", "medium", f"{name} is invisible")
    else:
        what = ("control-character", "low", f"{name} in the source: write it as an escape")
    return finding(file, line, column, what[0], SKILL, what[1], what[2])


def _identifiers(source: Source) -> Iterator[Finding]:
    told: set[str] = set()
    for token in _names(source.text):
        name = token.string
        if name in told:
            continue
        told.add(name)
        line, column = token.start[0], token.start[1] + 1
        plain = name.translate(_LOOKALIKE)
        if plain != name and plain.isascii():
            others = ", ".join(sorted({f"U+{ord(c):04X}" for c in name if ord(c) in _LOOKALIKE}))
            message = f"the name {name!r} looks like {plain!r} but has {others}"
            yield finding(source.file, line, column, "lookalike-name", SKILL, "high", message)
        elif unicodedata.normalize("NFKC", name) != name:
            message = f"Python reads the name {name!r} as {unicodedata.normalize('NFKC', name)!r}"
            yield finding(source.file, line, column, "not-normal-name", SKILL, "medium", message)


def _names(text: str) -> Iterator[tokenize.TokenInfo]:
    """The identifiers with anything but ASCII, up to where the text stops being Python."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and not token.string.isascii():
                yield token
    except (tokenize.TokenError, SyntaxError):
        return
