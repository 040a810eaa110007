"""A driver of its own for the tests of the template: `template_driver.py <modules to preload> <how to end>`.

Prints one line of JSON: what an agent says of itself, and the processes that should end with the driver.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import psutil
from template_agents import origin

import flowray as fr


def main() -> None:
    preload, end = sys.argv[1:]
    overrides = {"ray.num_cpus": 2, "ray.object_store_mb": 80, "ray.preload": [m for m in preload.split(",") if m]}
    with fr.Runtime.start(overrides=overrides) as rt:
        rt.agents.add(origin)
        said = rt.submit("where from?", needs={"origin"}).result(120)
        # Ray's own agents are not among them: they look for the head for a minute, however their workers were started.
        template = psutil.Process(said["parent"])
        started = [template, *template.children(recursive=True)]
        # With names and times: a process id alone may be somebody else's a moment later.
        found = {**said, "started": [[one.pid, one.create_time(), one.name()] for one in started]}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
