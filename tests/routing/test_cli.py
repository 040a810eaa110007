"""`flowray router`: the answer on stdout, the rest on stderr, wrong usage in a sentence."""

from __future__ import annotations

import json

import pytest

from flowray.cli.router import _numbers

from .sets import small, two_trades, write


@pytest.mark.slow
def test_the_baselines_can_be_judged_alone(router, tmp_path):
    one = two_trades(tmp_path / "trades")
    code, out, err = router(
        "evaluate", "--no-router", "--data", one, "--json", "--resamples", 0, "--report", tmp_path / "page.html"
    )
    assert code == 0, err
    metric = json.loads(out)["sets"]["trades"]["success_accuracy"]
    assert metric["router"] is None and metric["interval"] is None and metric["baselines"]["table"] > 0.7
    assert "trades ..." in err
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_a_router_is_trained_judged_shown_and_asked(router, tmp_path):
    one, model = two_trades(tmp_path / "trades", n_tasks=120), tmp_path / "models" / "router" / "v1"
    code, _, err = router("train", "--data", one, "-o", model)
    assert code == 0, err
    code, out, err = router("inspect", "--json")  # the newest below models/router
    assert code == 0, err
    assert set(json.loads(out)["data"]) == {"trades"}
    code, out, err = router("evaluate", "--no-baselines", "--data", one, "--resamples", 100, "--json")
    assert code == 0, err
    metric = json.loads(out)["sets"]["trades"]["success_auc"]
    assert metric["interval"][0] <= metric["router"] <= metric["interval"][1]
    code, out, err = router("explain", "verse stanza rhyme", "--agents", one, "--only", "poet", "--only", "fool")
    assert code == 0, err
    assert out.index("1. poet: success") < out.index("2. fool: success")
    code, out, err = router("prune", "--data", one, "-o", tmp_path / "small", "--keep", 0.5, "--json")
    assert code == 0, err
    sizes = json.loads(out)
    assert sizes["parameters_after"] < sizes["parameters_before"]
    code, out, err = router("inspect", "--model", tmp_path / "small", "--json")
    assert json.loads(out)["sha256"] == sizes["sha256"]


WRONG = [
    (("evaluate", "--no-router", "--no-baselines"), "leaves nothing to judge"),
    (("evaluate", "--no-router"), "name a directory of sets"),
    (("evaluate", "--no-router", "--data", "nowhere"), "nowhere: is not there"),
    (("evaluate", "--no-router", "--data", "mine", "--split", "later"), "no set has tasks in 'later'"),
    (("evaluate", "--no-router", "--data", "torn"), "column 'success': is missing"),
    (("inspect",), "make one with `make router`"),
    (("train", "--data", "later", "-o", "out"), "name sets with a train split"),
    (
        ("train", "--data", "mine", "-o", "out", "--device", "gpu"),
        "--device: must be one of auto, cpu, cuda, got 'gpu'",
    ),
    (("prune", "--data", "mine", "-o", "out", "--keep", "1.5"), "at most 1, got 1.5"),
    (("explain", "text", "--agents", "mine", "--only", "z"), "has no agent 'z'"),
    (("explain", "text", "--agents", "nowhere"), "there are no agents"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_wrong_usage_is_a_sentence(router, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr("flowray.cli.router.__file__", str(tmp_path / "a" / "b" / "c.py"))  # no checkout around it
    write(tmp_path / "mine", **small())
    write(tmp_path / "torn", **small(outcomes={"success": None}))
    write(tmp_path / "later", **small(tasks={"split": ["later"] * 3}))
    code, out, err = router(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_version_ten_is_newer_than_nine():
    assert sorted(["v10", "v9", "v1.2"], key=_numbers) == ["v1.2", "v9", "v10"]
