"""What a replica of a served router runs, in a process of its own (`flowray.runtime.serving` deploys it).

Nobody else imports this module: doing so sets how the replicas of this process work.

Serve runs what it serves on an event loop in a thread of its own, so that code which holds it up does not keep Serve
from answering its controller. An answer of this one takes a millisecond, and two more changes of threads take as long,
so it runs on Serve's own loop.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import structs
from ray.serve._private import replica as serve_replica

from flowray.errors import InvalidTask
from flowray.routing.queries import Answers, Queries, RouterStatus, decode_queries, encode
from flowray.routing.versions import version_of

if TYPE_CHECKING:
    from flowray.routing.scoring import Scorer  # loads torch, which only replicas need

_WORDS = 500  # characters of what a version on trial raised

serve_replica.RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD = False


class RouterReplica:
    """What a replica runs. Serve calls `reconfigure` after `__init__` and at each new version."""

    def __init__(self, precision: str, max_tasks: int) -> None:
        from flowray.routing import scoring

        _keep_to_loopback()
        scoring.use_one_thread()
        self._load = partial(scoring.Scorer.load, precision=cast(Any, precision))
        self._max_tasks = max_tasks
        self._scorer: Scorer | None = None
        self._other: Scorer | None = None  # on trial, or in force before
        self._taken = ("", "")  # the directories of the router that answers and of its history
        self._told = self._refused = self._reason = self._other_reason = self._serving = ""
        self._by_trial = False
        self._answered = 0
        self._changing = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None  # of the version on trial

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Take the router in the directory "router" and the history in "history" ("" for none).

        Where "version" is given, that is what they must be; "told", "serving" and "by_trial" come back in the status.
        "other_router", "other_history" and "other_version" are of the version beside it, which is loaded after this
        returns; one that cannot be is left out. What was "told" is in the status when all that is done.

        Raises:
            Exception: it cannot be used, and there is no older one to go on with.
        """
        router, history = user_config["router"], user_config.get("history", "")
        wanted = user_config.get("version", "")
        async with self._changing:
            if self._loading is not None:
                self._loading.cancel()
                self._loading = None
            held, scorer = self._loaded(user_config.get("other_version", "")), self._scorer
            try:
                scorer = await self._found(router, history, wanted)
                if scorer is not self._scorer:
                    self._refused = self._reason = ""
                self._taken = router, history
            except Exception as error:  # whatever it is: let out, it would make Serve kill a replica that answers
                if self._scorer is None:
                    raise
                self._refused, self._reason = wanted or router, f"{type(error).__name__}: {error}"
            self._scorer, self._other, self._other_reason = scorer, held, ""
            self._serving, self._by_trial = user_config.get("serving", ""), bool(user_config.get("by_trial"))
            if user_config.get("other_router") and held is None:
                self._loading = asyncio.get_running_loop().create_task(self._load_beside(user_config))
            else:
                self._settle(user_config)

    async def _load_beside(self, user_config: dict[str, str]) -> None:
        """Load the version on trial while calls are answered: Serve sends none here until `reconfigure` returns."""
        places = user_config["other_router"], user_config.get("other_history", "")
        try:
            self._other = await self._found(*places, user_config.get("other_version", ""))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the one in force answers
            self._other_reason = f"{type(error).__name__}: {error}"
        self._settle(user_config)

    def _settle(self, user_config: dict[str, str]) -> None:
        """All that it was told of is there, or cannot be."""
        self._told = user_config.get("told", "")
        gc.freeze()  # nothing of this will be looked through again, which takes tens of milliseconds

    async def _found(self, router: str, history: str, wanted: str) -> Scorer:
        """The version that lies there, which must be the wanted one, if any. Raises whatever is wrong with it."""
        found = await asyncio.to_thread(version_of, router, history)
        if wanted and found != wanted:
            raise OSError(f"{router} and {history or 'no history'} are {found} here, not {wanted}")
        loaded = self._loaded(found)
        return loaded if loaded is not None else await asyncio.to_thread(self._load, router, history)

    def _loaded(self, version: str) -> Scorer | None:
        return next((one for one in (self._scorer, self._other) if one is not None and one.version == version), None)

    async def score(self, body: bytes) -> bytes:
        """Answers (encoded) to Queries (encoded).

        Raises:
            InvalidTask: it is no such message, or has too many tasks.
        """
        try:
            asked: Queries = decode_queries(body)
        except msgspec.DecodeError as error:
            raise InvalidTask("queries", f"cannot be read: {error}") from error
        if len(asked.queries) > self._max_tasks:
            raise InvalidTask("queries", f"has {len(asked.queries)} tasks, at most {self._max_tasks} are taken at once")
        if any(not 0 <= row < len(asked.queries) for row in asked.rows):
            raise InvalidTask("rows", f"must be of the {len(asked.queries)} queries, got {asked.rows}")
        begun = time.perf_counter()
        answers = (self._loaded(asked.version) or self._current()).score(asked)
        took_s = time.perf_counter() - begun
        other, trouble = self._by_the_other(asked) if asked.rows else (None, "")
        self._answered += 1
        return encode(structs.replace(answers, took_s=took_s, other=other, trouble=trouble))

    def _by_the_other(self, asked: Queries) -> tuple[Answers | None, str]:
        """What the other version says of its rows, or why it cannot."""
        scorer = self._loaded(asked.other)
        if scorer is None:
            return None, ""
        begun = time.perf_counter()
        try:
            answers = scorer.score(Queries(tuple(asked.queries[row] for row in asked.rows)))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a version on trial, the one in force answers
            return None, f"{type(error).__name__}: {error}"[:_WORDS]
        return structs.replace(answers, took_s=time.perf_counter() - begun), ""

    async def status(self) -> bytes:
        """A RouterStatus, encoded."""
        scorer = self._current()
        return encode(
            RouterStatus(
                version=scorer.version,
                router=self._taken[0],
                history=self._taken[1],
                pid=os.getpid(),
                answered=self._answered,
                int8_from=scorer.router.int8_from,
                told=self._told,
                refused=self._refused,
                reason=self._reason,
                other="" if self._other is None else self._other.version,
                other_reason=self._other_reason,
                by_trial=self._by_trial,
                serving=self._serving,
            )
        )

    async def check_health(self) -> None:
        """Answer for a made-up task. Raises whatever is wrong."""
        self._current().practise(1)

    def _current(self) -> Scorer:
        assert self._scorer is not None, "Serve calls reconfigure first"
        return self._scorer


def _keep_to_loopback() -> None:
    """Let this replica's gRPC server, which Serve starts after the constructor, listen on loopback only."""
    listen = serve_replica.add_port_to_grpc_server

    def listen_here(server: Any, address: str) -> Any:
        return listen(server, f"127.0.0.1:{address.rpartition(':')[2]}")

    serve_replica.add_port_to_grpc_server = listen_here
