"""What matters first: points for findings, a grade for a package, an order for a person's attention.

Points       error and high 10, medium 3, low 0.5, note 0. Of one rule in one file at most 10 findings count: the
             eleventh unused import says nothing new.
Density      points for each 1,000 lines; a package of under 300 lines counts as 300, so that one finding in a tiny
             file is not a disaster.
Score        100 x 2^(-density / 12): every 12 points for each 1,000 lines halve it.
Grade        A from 90, B from 80, C from 65, D from 50, E from 35, F below.
Attention    points x 0.8^(how often the rule came before) x 0.9^(how often the file came before), in the stable order
             of severity, hot file, place: the list that follows shows different problems, not one of them 20 times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from flowray.skills.audit.findings import Finding

POINTS = {"error": 10.0, "high": 10.0, "medium": 3.0, "low": 0.5, "note": 0.0}
HALVING = 12.0  # points for each 1,000 lines
LEAST_LINES = 300
GRADES = ((90.0, "A"), (80.0, "B"), (65.0, "C"), (50.0, "D"), (35.0, "E"), (0.0, "F"))
FORMULA = (
    "points: error and high 10, medium 3, low 0.5, note 0, at most 10 findings of one rule in one file; "
    "density: points for each 1,000 lines (of at least 300); score: 100 x 2^(-density / 12); "
    "grade: A from 90, B from 80, C from 65, D from 50, E from 35, F below"
)
_COUNTED = 10


def points(found: Iterable[Finding]) -> float:
    """The points of some findings, repetitions of a rule in a file bounded."""
    counted: Counter[tuple[str, str, str]] = Counter((f.file, f.rule, f.severity) for f in found)
    return sum(POINTS[severity] * min(count, _COUNTED) for (_, _, severity), count in sorted(counted.items()))


def score(total_points: float, lines: int) -> float:
    """0 to 100."""
    density = 1000.0 * total_points / max(lines, LEAST_LINES)
    return round(100.0 * 2.0 ** (-density / HALVING), 1)


def grade(of_score: float) -> str:
    """A to F."""
    return next(letter for least, letter in GRADES if of_score >= least)


def by_attention(found: Iterable[Finding], heat: Mapping[str, float], limit: int) -> list[Finding]:
    """The findings to look at first, at most `limit`; notes never."""
    order = sorted((f for f in found if f.severity != "note"), key=lambda f: (f.rank, -heat.get(f.file, 0.0), f.place))
    rules: Counter[str] = Counter()
    files: Counter[str] = Counter()
    weighed: list[tuple[float, int]] = []
    for index, f in enumerate(order):
        agreed = 1.2 if f.also else 1.0
        worth = POINTS[f.severity] * agreed * 0.8 ** min(rules[f.rule], 60) * 0.9 ** min(files[f.file], 60)
        weighed.append((-worth, index))
        rules[f.rule] += 1
        files[f.file] += 1
    return [order[index] for _, index in sorted(weighed)[:limit]]
