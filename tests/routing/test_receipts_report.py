"""The page of what a router chose: complete, self-contained, safe, inside its frames."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from flowray.core.model import Estimate
from flowray.core.states import TaskState
from flowray.routing import drawing, receipts_report, timelines
from flowray.routing.analytics import AnalyticsConfig, analyse

from .logs import Logger, decided, outcome, routed

QUICK = AnalyticsConfig(windows=10, resamples=20)


@pytest.fixture(scope="module")
def found():
    return analyse(Logger(drops=("middle", 0.5, 0.4)).decisions(2000), QUICK)


def charts_of(page):
    return [ElementTree.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def inside(chart):
    corners = [point.split(",") for one in chart.iter() for point in (one.get("points") or "").split()]
    corners += [(circle.get("cx"), circle.get("cy")) for circle in chart.iter("circle")]
    return all(0 <= float(x) <= drawing.WIDTH and 0 <= float(y) <= drawing.HEIGHT for x, y in corners)


def test_the_page_needs_nothing_else_and_draws_everything(found):
    page = receipts_report.as_html(found)
    assert not re.findall(r"<script|<link|<img|@import|url\(|https?://|NaN|nan\b", page)
    drawn = charts_of(page)
    assert len(drawn) == 10 and all(inside(chart) for chart in drawn)
    assert "middle (worse than estimated)" in page and 'class="worse"' in page
    for style in set(re.findall(r'class="(?:line|dot|area) (\w+)"', page)):
        assert f".{style} " in page  # has a colour


def test_lines_tell_the_same(found):
    text = receipts_report.as_text(found)
    assert "2,000 decisions of router v1 for 2,000 tasks" in text
    assert re.search(r"beside always large +\d+\.\d% saved", text)
    assert re.search(r"  middle +\d.*worse than estimated \(window \d+ of 10\)", text)


def test_names_are_escaped_and_many_candidates_drawn_as_one():
    estimates = tuple(Estimate(f"<b>{place}", 0.5 + place / 40) for place in range(12))
    shares = (1 / 12,) * 12
    made = [
        outcome(n, choices=(routed(f"<b>{n % 12}", estimates=estimates, values=shares, propensities=shares),))
        for n in range(60)
    ]
    page = receipts_report.as_html(analyse(decided(made), QUICK))
    assert "<b>" not in page and "&lt;b&gt;11" in page and "5 others" in page
    assert all(inside(chart) for chart in charts_of(page))


def test_a_log_that_knows_nothing_makes_a_page_all_the_same():
    bare = routed(estimates=(Estimate("large", 0.9), Estimate("small", 0.6)))
    found = analyse(decided([outcome(1, choices=(bare,), state=TaskState.CANCELLED)]), QUICK)
    page, text = receipts_report.as_html(found), receipts_report.as_text(found)
    assert all(inside(chart) for chart in charts_of(page))
    assert "costs are not estimated" in page and "not known" in text and "nan" not in text


def test_time_is_shown_in_a_unit_that_fits():
    for seconds, unit in ((10.0, "seconds"), (600.0, "minutes"), (20_000.0, "hours"), (900_000.0, "days")):
        at = np.array([5.0, 5.0 + seconds])
        chart = timelines.lines(at, {"router": ("x", np.array([0.1, 0.2]))}, "x")
        assert f"{unit} since the first window" in chart


def test_an_axis_ends_at_its_bounds_unless_something_crosses_them():
    at = np.arange(3.0)

    def heights(values):
        chart = timelines.lines(at, {"router": ("x", np.array(values))}, "x", bounds=(0.0, 1.0))
        return [float(circle.get("cy")) for circle in ElementTree.fromstring(chart).iter("circle")]

    at_bounds = heights([0.0, 0.5, 1.0])
    assert at_bounds[0] == pytest.approx(drawing.HEIGHT - 44) and at_bounds[2] == pytest.approx(14)
    assert heights([0.0, 0.5, 2.0])[2] > 14
