"""tests/scenarios/*.txt: what a person can read is what the core does. `pytest --rewrite` after a look at the diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowray.errors import ConfigError
from flowray.testing.scenario import Scenario

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_core_answers_as_written(path, request):
    text = path.read_text()
    now = Scenario().run(text)
    if request.config.getoption("--rewrite"):
        path.write_text(now)
    else:
        assert now == text, f"{path.name} has changed: look at the diff, then run pytest --rewrite"


def test_there_are_scenarios():
    assert len(SCENARIOS) >= 12
    assert all(path.read_text().startswith("#") for path in SCENARIOS)


def test_an_unknown_directive_is_named():
    with pytest.raises(ConfigError, match="no directive 'sumbit'"):
        Scenario().run("sumbit a\n")
