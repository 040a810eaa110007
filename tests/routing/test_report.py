"""The page and the lines: complete, self-contained, safe."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from flowray.routing import charts, data, drawing, evaluation, report
from flowray.routing.costing import Curve
from flowray.routing.judge import Metric
from flowray.routing.metrics import Measured

from .sets import two_trades
from .test_evaluation import Reader


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    one = data.load(two_trades(tmp_path_factory.mktemp("sets") / "trades"))
    return evaluation.evaluate(Reader(), one, with_baselines=False, resamples=20)


def test_the_page_needs_nothing_else(judged):
    page = report.as_html([judged])
    assert not re.findall(r"<script|<link|<img|@import|url\(|https?://", page)
    assert all(name in page for name in judged.metrics)


def test_the_charts_are_well_formed_and_inside_their_frame(judged):
    drawn = re.findall(r"<svg.*?</svg>", report.as_html([judged]), re.DOTALL)
    assert len(drawn) == 2
    for chart in drawn:
        root = ElementTree.fromstring(chart)
        for circle in root.iter("circle"):
            assert 0 <= float(circle.get("cx")) <= drawing.WIDTH
            assert 0 <= float(circle.get("cy")) <= drawing.HEIGHT
        for line in root.iter("polyline"):
            numbers = [float(n) for n in re.split("[ ,]", line.get("points"))]
            assert all(0 <= x <= drawing.WIDTH for x in numbers[::2])
            assert all(0 <= y <= drawing.HEIGHT for y in numbers[1::2])


def test_names_from_the_data_are_escaped(judged):
    page = report.as_html([replace(judged, name="<b>mine</b>", notes=["a < b"])])
    assert "<b>mine" not in page and "&lt;b&gt;mine" in page and "a &lt; b" in page


def test_lines_name_the_best_baseline(judged):
    metric = Metric(router=0.1, baselines={"table": 0.2, "knn": 0.3}, interval=(0.05, 0.15))
    text = report.as_text([replace(judged, metrics={"brier": metric, "aiq": metric}, notes=["mind this"])])
    assert re.search(r"Brier score +0\.100 \[0\.050, 0\.150\] +table 0\.200", text)
    assert re.search(r"AIQ +0\.100 \[0\.050, 0\.150\] +knn 0\.300", text)
    assert text.endswith("mind this")


def test_what_is_not_reached_is_said(judged):
    metric = Metric(router=float("nan"), baselines={"table": 2.0}, interval=None)
    one = replace(judged, metrics={"usd_per_million_tokens": metric})
    assert "not reached" in report.as_text([one])
    assert "not reached" in report.as_html([one])


@pytest.mark.parametrize(
    ("name", "interval", "verdict"),
    [("aiq", (0.1, 0.3), "better"), ("aiq", (-0.3, -0.1), "worse"), ("aiq", (-0.1, 0.3), ""),
     ("brier", (-0.3, -0.1), "better"), ("brier", (0.1, 0.3), "worse"), ("cost_cut_fixed", (0.1, 0.3), "")],
)  # fmt: skip
def test_a_lead_is_coloured_where_it_is_sure(judged, name, interval, verdict):
    over = Measured(value=sum(interval) / 2, interval=interval)
    metric = Metric(router=0.5, baselines={"table": 0.4}, interval=None, over_table=over)
    page = report.as_html([replace(judged, metrics={name: metric})])
    assert re.findall(r'<td class="(better|worse)', page) == ([verdict] if verdict else [])


def test_a_single_operating_point_can_be_drawn():
    point = Curve(cost_usd=np.array([1.0]), success=np.array([0.5]))
    drawn = charts.cost_quality({"router": point}, {"only": (1.0, 0.5)}, "only", "one")
    assert ElementTree.fromstring(drawn) is not None
