"""A module that every process of a node imports: `time.time` is off by what a file of the node says, if it is there."""

from __future__ import annotations

import os
import time
from pathlib import Path

_FILE = Path(os.environ["HOME"]) / "clock-offset"
_true_time = time.time


def _shifted() -> float:
    try:
        return _true_time() + float(_FILE.read_text() or 0)
    except FileNotFoundError:
        return _true_time()


time.time = _shifted
