"""Agent asks agent with flowray: two agents of an embedded runtime, one of which asks from within a task."""

from __future__ import annotations

from typing import Any

import flowray as fr
from bench.workers.common import main
from bench.workers.messengers import ASKER, ECHO


def work(settings: dict[str, Any]) -> dict[str, Any]:
    with fr.Runtime.start(overrides={"ray.agent_output": False}) as rt:
        rt.agents.add("bench.workers.messengers:Echo", name=ECHO)
        rt.agents.add("bench.workers.messengers:Asker", name=ASKER)
        rt.wait_ready(timeout_s=180, agents=2)
        figures: dict[str, Any] = rt.submit("ask", payload=settings, needs={"asker"}).result(timeout_s=300)
        return figures


if __name__ == "__main__":
    main(work)
