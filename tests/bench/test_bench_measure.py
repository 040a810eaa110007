"""The mathematics of the figures, and who takes which turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import measure
from bench.measure import (
    FLOWRAY,
    Figures,
    Measurement,
    Plan,
    SideAbsent,
    SideFailed,
    alternate,
    compared,
    percentile,
    ratio,
    spread,
)

VALUES = st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=1, max_size=20)


def test_result_is_the_median_with_least_and_greatest_and_the_ratio_to_the_first_peer() -> None:
    result = Measurement(
        metric="m", unit="tasks/s", flowray=[30.0, 10.0, 20.0], peers={"ray": [5.0, 4.0, 6.0], "other": [1.0, 1.0, 2.0]}
    ).result()
    assert result == {
        "metric": "m",
        "unit": "tasks/s",
        "flowray": 20.0,
        "peers": {"ray": 5.0, "other": 1.0},
        "ratio": 4.0,
        "ratios": {"ray": 4.0, "other": 20.0},
        "n": 3,
        "spread": [10.0, 30.0],
        "peers_spread": {"ray": [4.0, 6.0], "other": [1.0, 2.0]},
    }


def test_median_of_an_even_number_lies_between_the_middle_two() -> None:
    assert Measurement(metric="m", unit="s", flowray=[1.0, 2.0, 4.0, 9.0]).result()["flowray"] == 3.0


@pytest.mark.parametrize(("ours", "theirs"), [(3.0, None), (3.0, 0.0), (None, 3.0)])
def test_there_is_no_ratio_without_one_of_the_two_or_beside_zero(ours: float | None, theirs: float | None) -> None:
    assert ratio(ours, theirs) is None


def test_a_metric_that_only_peers_have_says_so() -> None:
    result = Measurement(metric="m", unit="s", flowray=[], peers={"ray": [3.0, 1.0]}).result()
    assert (result["flowray"], result["spread"], result["ratio"]) == (None, None, None)
    assert (result["peers"], result["n"]) == ({"ray": 2.0}, 2)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_a_figure_that_is_none_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="m: flowray has no finite figures"):
        Measurement(metric="m", unit="s", flowray=values)
    with pytest.raises(ValueError, match="m: ray has no finite figures"):
        Measurement(metric="m", unit="s", flowray=[1.0], peers={"ray": values})


@given(VALUES)
def test_the_spread_holds_the_median(values: list[float]) -> None:
    result = Measurement(metric="m", unit="s", flowray=values).result()
    low, high = spread(values)
    assert low <= result["flowray"] <= high  # type: ignore[operator]


@given(VALUES, st.floats(min_value=0, max_value=1))
def test_percentile_stays_within_the_values_and_grows(values: list[float], share: float) -> None:
    assert min(values) <= percentile(values, share) * (1 + 1e-9)
    assert percentile(values, share) <= max(values) * (1 + 1e-9)
    assert percentile(values, share / 2) <= percentile(values, share) * (1 + 1e-9)


def test_percentile_of_known_values() -> None:
    values = [float(v) for v in range(101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.0, 50.0, 99.0, 100.0]
    assert percentile([1.0, 2.0], 0.5) == 1.5
    with pytest.raises(ValueError, match="no percentile"):
        percentile([], 0.5)


def test_sides_take_turns_and_nobody_is_always_first() -> None:
    order: list[str] = []

    def side(name: str) -> Figures:
        order.append(name)
        return {"m": float(len(order))}

    found = alternate({"a": lambda: side("a"), "b": lambda: side("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found.absent == {}
    assert found.figures == {"a": [{"m": 1.0}, {"m": 4.0}, {"m": 5.0}], "b": [{"m": 2.0}, {"m": 3.0}, {"m": 6.0}]}


def test_a_warm_up_is_forgotten() -> None:
    calls: list[int] = []

    def side() -> Figures:
        calls.append(1)
        return {"m": float(len(calls))}

    assert alternate({"a": side}, 1, warm_up=True).figures == {"a": [{"m": 2.0}]}


class Failing:
    """A side that gives figures until its turn number `at`."""

    def __init__(self, at: int, error: Exception) -> None:
        self.turns, self._at, self._error = 0, at, error

    def __call__(self) -> Figures:
        self.turns += 1
        if self.turns >= self._at:
            raise self._error
        return {"m": 1.0}


def test_a_peer_that_fails_is_out_with_its_reason_and_the_others_go_on() -> None:
    failing = Failing(2, SideFailed("it fell over"))
    found = alternate({FLOWRAY: lambda: {"m": 2.0}, "peer": failing}, 4)
    assert found.figures == {FLOWRAY: [{"m": 2.0}] * 4}
    assert found.absent == {"peer": "failed in repeat 2 of 4: it fell over"}
    assert failing.turns == 2


@pytest.mark.parametrize("side", [FLOWRAY, "peer"])
def test_a_side_that_is_absent_says_so_once(side: str) -> None:
    absent = Failing(1, SideAbsent("not built yet"))
    found = alternate({side: absent, "other": lambda: {"m": 1.0}}, 3, warm_up=True)
    assert found.absent == {side: "not built yet"}
    assert list(found.figures) == ["other"]
    assert absent.turns == 1


def test_our_own_failure_ends_the_run() -> None:
    with pytest.raises(SideFailed, match="ours"):
        alternate({"peer": lambda: {"m": 1.0}, FLOWRAY: Failing(1, SideFailed("ours"))}, 3)
    with pytest.raises(SideFailed, match="a needed one"):
        alternate({"24": Failing(1, SideFailed("a needed one"))}, 3, required=["24"])


def test_a_plan_without_peers_named_wants_all_and_always_flowray() -> None:
    assert all(Plan().wants(side) for side in (FLOWRAY, "ray"))
    only = Plan(peers=("ray",))
    assert [only.wants(side) for side in (FLOWRAY, "ray", "xoscar")] == [True, True, False]
    assert [Plan(flowray=False).wants(side) for side in (FLOWRAY, "ray")] == [False, True]


def test_a_peer_without_the_metric_is_left_out_of_it() -> None:
    found = {FLOWRAY: [{"x": 1.0, "y": 2.0}], "ray": [{"x": 3.0}]}
    x, y = compared(found, {"x": "s", "y": "s"})
    assert (dict(x.peers), dict(y.peers)) == ({"ray": [3.0]}, {})


def test_a_metric_that_nobody_has_is_none_and_one_without_ours_stays() -> None:
    (only,) = compared({FLOWRAY: [{"x": 1.0}], "ray": [{"y": 2.0}]}, {"y": "s", "z": "s"})
    assert (only.metric, only.flowray, dict(only.peers)) == ("y", [], {"ray": [2.0]})


@pytest.mark.parametrize(("value", "short"), [(0.00123456, 0.001235), (12.3456, 12.35), (123456.7, 123457.0)])
def test_figures_keep_four_digits(value: float, short: float) -> None:
    assert measure.rounded(value) == short


@pytest.mark.parametrize(
    ("unit", "better"), [("tasks/s", True), ("ms", False), ("us/task", False), ("MB", False), ("share", True)]
)
def test_rates_are_better_when_higher(unit: str, better: bool) -> None:
    assert measure.higher_is_better(unit) is better
