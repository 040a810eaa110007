"""The agent that does nothing: what is left is the runtime's own cost."""

from __future__ import annotations

import flowray as fr


@fr.agent(capabilities={"noop"}, num_cpus=0.001)
class Noop:
    def run(self, task: fr.Task) -> None:
        return None
