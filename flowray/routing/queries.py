"""What a router is asked from elsewhere and what it answers, as messages: plain data, encoded with msgpack.

Nothing heavy is imported here, so that whoever asks needs neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from flowray.core.model import Estimate, Task
from flowray.offers import COUNTS, count_tools


class Query(Struct, frozen=True, array_like=True):
    """One task and who could do it. See `flowray.routing.estimates.TaskBatch` for what a router reads."""

    text: str
    candidates: tuple[str, ...]  # ids or classes; those that the history does not know count as the mean of the others
    choices: str = ""
    tools: str = ""
    n_tools: float | None = None
    n_params: float | None = None
    n_options: float | None = None
    tried: tuple[tuple[str, float], ...] = ()  # (candidate, 1 or 0): what came of earlier attempts at this very task
    builds_on: str = ""  # the class of agents whose answer it goes on from; "" for none


class Queries(Struct, frozen=True, array_like=True):
    """Several tasks, asked at once."""

    queries: tuple[Query, ...]
    version: str = ""  # that is to answer, where it is there; "" for the one in force there
    other: str = ""  # another version, that is to be asked too
    rows: tuple[int, ...] = ()  # of the queries that it is asked


class Answers(Struct, frozen=True, array_like=True):
    """What to expect: for each query the estimates of its candidates, in their order.

    Who learns on top of them (`LiveRouter.estimate_from`) also needs what the tasks are, and whom the history knows.
    """

    version: str  # of the router that made them, see `flowray.routing.versions`
    estimates: tuple[tuple[Estimate, ...], ...]
    kinds: tuple[str, ...] = ()  # of tasks that the router tells apart
    shares: tuple[tuple[float, ...], ...] = ()  # of these in each query; they sum to 1
    strangers: tuple[str, ...] = ()  # those of the candidates that the history does not know
    took_s: float = 0.0  # to compute
    other: Answers | None = None  # of the other version; None where it was not asked, or is not there
    trouble: str = ""  # why the other version, which is there, could not answer

    def fits(self, asked: Queries) -> bool:
        """Are these answers to those queries?"""
        return [tuple(one.candidate for one in row) for row in self.estimates] == [
            query.candidates for query in asked.queries
        ]


class RouterStatus(Struct, frozen=True, array_like=True):
    """What one process that answers says of itself."""

    version: str  # that answers now
    router: str  # its directory
    history: str  # the directory of the outcomes it goes by, "" for none
    pid: int
    answered: int  # calls, in the life of this process
    int8_from: int | None  # tasks in a batch from which it computes with int8 weights; None: never
    told: str = ""  # mark of what it was told last
    refused: str = ""  # version or directory that it could not take since it took the one that answers
    reason: str = ""  # why not
    other: str = ""  # version that answers beside it whoever asks for it, "" for none
    other_reason: str = ""  # why there is none, where it was told of one
    by_trial: bool = False  # it was told so by a trial, not by hand
    serving: str = ""  # the ServingConfig that it was deployed with, as JSON


def query_of(task: Task, candidates: tuple[str, ...], tried: tuple[tuple[str, float], ...] = ()) -> Query:
    """What a router is asked about a task."""
    return Query(
        task.prompt,
        candidates,
        choices=task.choices,
        tools=task.tools,
        **counted(task.tools, task.counts),
        tried=tried,
        builds_on=task.builds_on,
    )


def counted(tools: str, counts: Mapping[str, float]) -> dict[str, float | None]:
    """The counts of a query: those told, and tools that nobody counted as their text has them."""
    found = {name: counts.get(name) for name in COUNTS}
    if found["n_tools"] is None:
        found["n_tools"] = count_tools(tools)
    return found


encode = msgspec.msgpack.Encoder().encode
decode_queries = msgspec.msgpack.Decoder(Queries).decode
decode_answers = msgspec.msgpack.Decoder(Answers).decode
decode_status = msgspec.msgpack.Decoder(RouterStatus).decode
