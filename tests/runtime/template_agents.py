"""Agents for the tests of the template: they tell about their own process."""

from __future__ import annotations

import os
import random
import sys
import uuid
from typing import Any

import psutil

import flowray as fr


@fr.agent(capabilities={"origin"})
def origin(task: fr.Task) -> dict[str, Any]:
    """Where this process comes from, and what it has loaded."""
    parent = psutil.Process().parent()
    assert parent is not None
    return {
        "pid": os.getpid(),
        "parent": parent.pid,
        "forked": any(word.endswith("template.py") for word in parent.cmdline()),
        "heavy": [name for name in ("torch", "pandas", "pyarrow", "numpy", "pydantic") if name in sys.modules],
        "random": [random.random(), uuid.uuid4().hex],
    }
