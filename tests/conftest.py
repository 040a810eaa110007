"""For all tests: options, and no silent skips where everything must run."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share the cores: torch and numpy take one

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `bench` is no installed package: it lies at the root

# How long an example takes says what else the machine does. In CI hypothesis has a profile of its own.
settings.register_profile("flowray", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("flowray")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-full", action="store_true", help="cluster tests: the full number of kills")
    parser.addoption("--rewrite", action="store_true", help="scenarios: write the transcripts that come out")


@pytest.hookimpl(tryfirst=True)  # before xdist reads which group a test is of
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --chaos-full the longest tests are not there. (Skipped, they would look as if something were missing.)

    Spread over processes (`-n 2 --dist loadgroup`), all that starts Ray stays in one of them, and begins first: two
    clusters at once would measure each other. What needs no Ray goes to the other.
    """
    if not config.getoption("--chaos-full"):
        left_out = [item for item in items if item.get_closest_marker("chaos")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("chaos")]
    for item in items:
        if _starts_ray(item):
            item.add_marker(pytest.mark.xdist_group("ray"))
    items.sort(key=_starts_ray, reverse=True)


def _starts_ray(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(marker) for marker in ("ray", "cluster"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """With FLOWRAY_NO_SKIPS=1 (continuous integration) a skipped test has failed: the machine lacks something."""
    report = yield
    if report.skipped and os.environ.get("FLOWRAY_NO_SKIPS") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report
