"""A driver script like a user's: run by python, by `ray job submit` and in a notebook it must print the same."""

import asyncio
import sys
from collections import Counter

import flowray as fr

TEXT = """the quick brown fox jumps over the lazy dog
the dog sleeps and the fox is gone
quick is not the same as good"""


@fr.agent(capabilities={"count"}, tier="primary")
class WordCounter:
    """Counts the words of one line."""

    def run(self, task: fr.Task) -> dict[str, int]:
        return dict(Counter(task.prompt.split()))


@fr.agent(capabilities={"merge"}, slots=2)
class Merger:
    """Adds counts up."""

    async def run(self, task: fr.Task, ctx: fr.Context) -> dict[str, int]:
        total: Counter[str] = Counter()
        for counts in task.payload:
            total.update(counts)
        await asyncio.sleep(0)
        return dict(total)


def refuse(task: fr.Task) -> None:
    raise ValueError(f"cannot do {task.prompt!r}")


def main() -> None:
    with fr.Runtime.start(overrides={"name": "three-ways", "ray.object_store_mb": 128}) as rt:
        rt.agents.add(WordCounter, count=2)
        rt.agents.add(Merger)
        rt.agents.add(refuse, capabilities={"refuse"})
        rt.wait_ready()
        parts = [done.result() for done in rt.map(TEXT.splitlines(), needs={"count"}).as_completed(60)]
        total = rt.submit(payload=parts, needs={"merge"}).result(timeout_s=60)
        for word, count in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:4]:
            sys.stdout.write(f"{count} {word}\n")
        try:
            rt.submit("magic", needs={"refuse"}).result(timeout_s=60)
        except fr.TaskFailed as error:
            sys.stdout.write(f"{error.error_type}: {error.agent_traceback.splitlines()[-1]}\n")
        status = rt.status()
        sys.stdout.write(f"{len(status.agents)} agents, {status.ended}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
