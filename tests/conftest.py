"""For all tests: options, and no silent skips where everything must run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
_STARTS_RAY = re.compile(r"pytest\.mark\.(ray|cluster)\b")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share the cores: torch and numpy take one

sys.path.insert(0, str(ROOT))  # `bench` is no installed package: it lies at the root

# How long an example takes says what else the machine does. In CI hypothesis has a profile of its own.
settings.register_profile("flowray", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("flowray")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-full", action="store_true", help="cluster tests: the full number of kills")
    parser.addoption("--rewrite", action="store_true", help="scenarios: write the transcripts that come out")


class RayApart(LoadScopeScheduling):
    """Spreads tests over processes (`-n 2`) by module, and keeps all modules that start Ray in one of them.

    Two clusters at once would measure each other. (xdist has groups for that, which pytest 9.2 does not know any more.)
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "ray" if _STARTS_RAY.search((ROOT / module).read_text()) else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> RayApart | None:
    return RayApart(config, log) if config.getvalue("dist") == "load" else None  # not where --dist says otherwise


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --chaos-full the longest tests are not there, and those for a GPU only where there is one.

    (Skipped, they would look as if something were missing that CI could have.)
    """
    absent = [] if config.getoption("--chaos-full") else ["chaos"]
    if not Path("/dev/nvidiactl").exists():
        absent.append("gpu")
    left_out = {item for item in items if any(item.get_closest_marker(marker) for marker in absent)}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """With FLOWRAY_NO_SKIPS=1 (continuous integration) a skipped test has failed: the machine lacks something."""
    report = yield
    if report.skipped and os.environ.get("FLOWRAY_NO_SKIPS") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report
