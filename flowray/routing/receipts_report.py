"""How a router chose, for people: one HTML page that needs nothing else, or lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np

from flowray.routing import charts, timelines
from flowray.routing.analytics import Analysis, Saving, Share
from flowray.routing.judge import ROUTER
from flowray.routing.metrics import Measured, Values
from flowray.routing.page import page

DRAWN = 7  # candidates with a colour of their own; the others are drawn as one
_REST = "rest"
Lines = Mapping[str, tuple[str, Values]]


def as_text(found: Analysis) -> str:
    """The figures, then one line per candidate."""
    lines = [_headline(found), ""]
    lines += [f"  {title:<34} {value}" for title, value in _figures(found)]
    lines += [
        "",
        f"  {'candidate':<20} {'share':>7} {'expected':>9} {'earned':>7} {'dollars':>9} {'seconds':>8}  drift",
    ]
    for one in found.candidates:
        numbers = (
            f"{one.chosen / found.decisions:>7.1%} {_known(one.expected, '.3f'):>9} {_known(one.reward, '.3f'):>7}"
        )
        means = f"{_known(one.cost_usd, '.3g'):>9} {_known(one.run_s, '.3g'):>8}"
        lines.append(f"  {one.candidate:<20} {numbers} {means}  {_drift(one, found)}".rstrip())
    return "\n".join(lines)


def as_html(found: Analysis) -> str:
    """A page with the figures, the candidates and how everything went over time."""
    rows = "".join(f"<tr><th>{escape(title)}</th><td>{escape(value)}</td></tr>" for title, value in _figures(found))
    body = f"""<header>
<h1>What the router chose</h1>
<p>{escape(_headline(found))} Savings and regret are by the estimates, so they are worth what these are: see how the
earned follows the expected. In brackets 95 % intervals (bootstrap over tasks).</p>
</header>
<main>
<section><h2>In figures</h2><div class="wide"><table class="plain">{rows}</table></div></section>
<section><h2>Estimates</h2><div class="pictures">{"".join(_estimates(found))}</div></section>
<section><h2>Choices and money</h2><div class="pictures">{"".join(_choices(found))}</div></section>
<section><h2>Candidates</h2><div class="pictures">{"".join(_drifting(found))}</div>{_table(found)}</section>
</main>"""
    return page("flowray: what the router chose", body)


def _headline(found: Analysis) -> str:
    versions = ", ".join(found.versions)
    what = f"{found.decisions:,} decisions of router {versions} for {found.tasks:,} tasks"
    return f"{what}; of {found.known:,} it is known what they earned."


def _figures(found: Analysis) -> Iterator[tuple[str, str]]:
    yield "estimates, AUC", _measured(found.auc)
    yield "estimates, Brier score", _measured(found.brier)
    yield "estimates, calibration error", _measured(found.calibration_error)
    yield "exploring", f"{found.exploring_share:.1%} of the decisions"
    yield "regret against the best estimate", f"{found.regret:.4f}, of which exploring {found.regret_exploring:.4f}"
    if np.isfinite(found.cost_usd_per_task):
        yield "dollars per task", f"{found.cost_usd_per_task:.4g}"
    yield "beside always the most expensive", _saving(found.against_dearest)
    yield f"beside always {found.single}", _saving(found.against_single)
    drifting = [f"{one.candidate} ({one.drift} than estimated)" for one in found.candidates if one.drift]
    yield "drift", ", ".join(drifting) or "none found"


def _saving(saving: Saving) -> str:
    expected = f"expected reward {saving.expected:+.4f}"
    if np.isnan(saving.saved_share):
        return f"{expected}; costs are not estimated"
    word = "saved" if saving.saved_share >= 0 else "spent more"
    bill = f"${saving.chosen_usd:.4g} instead of ${saving.instead_usd:.4g} a decision"
    return f"{abs(saving.saved_share):.1%} {word} ({bill}), {expected}"


def _estimates(found: Analysis) -> Iterator[str]:
    series = found.series
    earned = {ROUTER: ("expected", series.expected), "table": ("earned", series.reward)}
    yield _over_time(found, "Expected and earned", "mean reward", earned)
    if found.known:
        chart = charts.reliability({ROUTER: found.reliability}, "reliability")
        yield _figure("Reliability of the chosen one's estimate", chart, {})
    yield _over_time(found, "Ranking: AUC", "AUC", {ROUTER: ("AUC", series.auc)}, bounds=(0.5, 1.0))
    yield _over_time(found, "Error: Brier score", "Brier score", {ROUTER: ("Brier", series.brier)}, bounds=(0.0, 0.25))


def _choices(found: Analysis) -> Iterator[str]:
    series = found.series
    regret = {ROUTER: ("regret", series.regret)}
    yield _over_time(found, "Regret against the best estimate", "expected reward", regret, bounds=(0.0, 0.01))
    exploring = {ROUTER: ("exploring", series.exploring)}
    yield _over_time(found, "Exploring", "share of the decisions", exploring, bounds=(0.0, 0.05))
    if np.isfinite(series.estimated_cost_usd).any():
        dollars = {
            ROUTER: ("chosen, estimated", 1000 * series.estimated_cost_usd),
            "table": ("answers, as reported", 1000 * series.cost_usd),
            "random_mixing": ("always the most expensive, estimated", 1000 * series.dearest_cost_usd),
        }
        shown: Lines = {style: line for style, line in dollars.items() if np.isfinite(line[1]).any()}
        yield _over_time(found, "Money", "dollars per 1,000 decisions", shown, bounds=(0.0, 0.0))
    yield _who(found)


def _who(found: Analysis) -> str:
    names = sorted(one.candidate for one in found.candidates)  # as the columns of the shares are
    columns = {
        f"c{place}": (one.candidate, found.series.shares[:, names.index(one.candidate)])
        for place, one in enumerate(found.candidates[:DRAWN])
    }
    if len(found.candidates) > DRAWN:
        rest = 1.0 - np.sum([values for _, values in columns.values()], axis=0)
        columns[_REST] = (f"{len(found.candidates) - DRAWN} others", np.maximum(rest, 0.0))
    chart = timelines.shares(found.series.at, columns, "share of the decisions")
    return _figure("Who gets what", chart, {style: name for style, (name, _) in columns.items()})


def _drifting(found: Analysis) -> Iterator[str]:
    drawn = {f"c{place}": one for place, one in enumerate(found.candidates[:DRAWN]) if one.chosen}
    most = 2 * found.threshold  # beyond it lines are cut off, or those of the others could not be told apart
    sums = {style: (one.candidate, np.clip(one.cusum, -most, most)) for style, one in drawn.items()}
    marks = {style: one.drift_window for style, one in drawn.items() if one.drift}
    levels = (-found.threshold, found.threshold)
    yield _over_time(
        found,
        "Drift: two-sided CUSUM, cut off at twice the threshold",
        "standard errors",
        sums,
        bounds=levels,
        levels=levels,
        marks=marks,
    )
    shown = {style: (one.candidate, one.residuals) for style, one in drawn.items() if one.drift}
    if shown:
        caption = "Those that drift: earned less expected"
        yield _over_time(found, caption, "mean reward less estimate", shown, levels=(0.0,), marks=marks)


def _over_time(
    found: Analysis,
    caption: str,
    up: str,
    series: Lines,
    *,
    bounds: tuple[float, float] | None = None,
    levels: Sequence[float] = (),
    marks: Mapping[str, int] | None = None,
) -> str:
    chart = timelines.lines(found.series.at, series, up, bounds=bounds, levels=levels, marks=marks)
    alone = list(series) == [ROUTER]  # then the caption says it all
    return _figure(caption, chart, {} if alone else {style: name for style, (name, _) in series.items()})


def _figure(caption: str, chart: str, keys: Mapping[str, str]) -> str:
    shown = "".join(f'<span class="key"><i class="{style}"></i>{escape(name)}</span>' for style, name in keys.items())
    below = f"<p class='keys'>{shown}</p>" if keys else ""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}{below}</figure>"


def _table(found: Analysis) -> str:
    heads = ("", "offered", "chosen", "exploring", "expected", "earned", "dollars", "seconds", "drift")
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f'<div class="wide"><table><tr>{top}</tr>{"".join(_rows(found))}</table></div>'


def _rows(found: Analysis) -> Iterator[str]:
    for one in found.candidates:
        cells: Sequence[str] = (
            f"{one.offered / found.decisions:.1%}",
            f"{one.chosen / found.decisions:.1%}",
            f"{one.explored / one.chosen:.1%}" if one.chosen else "",
            _known(one.expected, ".3f"),
            _known(one.reward, ".3f"),
            _known(one.cost_usd, ".3g"),
            _known(one.run_s, ".3g"),
        )
        shown = "".join(f"<td>{cell}</td>" for cell in cells)
        yield f'<tr><th>{escape(one.candidate)}</th>{shown}<td class="{one.drift}">{_drift(one, found)}</td></tr>'


def _drift(one: Share, found: Analysis) -> str:
    if not one.drift:
        return ""
    return f"{one.drift} than estimated (window {one.drift_window + 1} of {len(found.series.at)})"


def _measured(measured: Measured) -> str:
    if np.isnan(measured.value):
        return "not known"
    if measured.interval is None:
        return f"{measured.value:.3f}"
    return "{:.3f} [{:.3f}, {:.3f}]".format(measured.value, *measured.interval)


def _known(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)
