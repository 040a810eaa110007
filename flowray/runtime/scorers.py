"""Asking a router that may be slow, hung or gone, so that no task waits for it: an answer, or why there is none.

Nothing of Ray is known here. What asks once is a coroutine function (`flowray.runtime.serving` has one for Serve); it
answers or says why not, and does not raise. Around it:

    breaker (pure)   may it be asked at all?          flowray.core.breaker
    hedging (pure)   when to ask once more            flowray.core.hedging
    `Hedged`         the race against the deadline    the event loop's clock, which it passes on to the two

Whoever gets a `Failed` decides by the local copy or the heuristic; its kind and detail belong into the receipt.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import msgspec

from flowray.core.breaker import Breaker, BreakerState
from flowray.core.hedging import Hedging
from flowray.routing.config import AskingConfig
from flowray.routing.queries import Answers, Queries, decode_answers, encode

Kind = Literal["absent", "open", "late", "full", "lost", "failed", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """There is no answer."""

    kind: Kind
    # absent: there is nobody to ask | open: not asked, for it did not answer before | late: not within the deadline
    # full: too many wait already | lost: the process that was asked is gone | failed: it raised, or its answer fits no
    # question | refused: the question itself is wrong, so that asking again does not help
    detail: str
    took_s: float = 0.0
    asked: int = 0  # questions: 0 when absent or open, more than 1 when hedged


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """An answer in time."""

    answers: Answers
    took_s: float
    asked: int  # questions: more than 1 when hedged
    hedged: bool = False  # not the first question was answered, but a further one
    path: str = "serve"  # who answered, as receipts say it


class Ask(Protocol):
    """Asks once. Cancelling it gives the question up."""

    async def __call__(self, body: bytes) -> bytes | Failed:
        """The answer's bytes, or why there is none."""
        ...


class Hedged:
    """Asks with a deadline, again where the first question takes long or failed, and not at all while that is vain.

    One for each event loop and served router.
    """

    def __init__(self, ask: Ask, config: AskingConfig | None = None) -> None:
        self._ask = ask
        self._config = config or AskingConfig()
        self._breaker = Breaker(self._config.breaker)
        self._hedging = Hedging(self._config.hedge)
        self._failed_at = -math.inf  # when a failure counted last

    @property
    def state(self) -> BreakerState:
        """Of the breaker."""
        return self._breaker.state

    async def score(self, queries: Queries, deadline_s: float | None = None) -> Scored | Failed:
        """What the router says of these tasks within the deadline (seconds from now)."""
        now = asyncio.get_running_loop().time
        begun = now()
        let_through = self._breaker.may_ask(begun)
        if let_through is None:
            wait_s = max(0.0, self._breaker.open_until - begun)
            return Failed(
                kind="open", detail=f"it did not answer before; asked again in {wait_s:.1f} s at the earliest"
            )
        allowed_s = self._config.deadline_s if deadline_s is None else deadline_s
        try:
            outcome = await self._race(queries, begun, begun + allowed_s)
        except BaseException:
            self._breaker.withdrew(let_through)
            raise
        if isinstance(outcome, Scored) or outcome.kind == "refused":
            self._breaker.succeeded(let_through)
        elif outcome.kind == "late" and allowed_s < self._config.deadline_s:
            self._breaker.withdrew(let_through)  # the caller was in a hurry: that says nothing of the router
        elif begun < self._failed_at:
            self._breaker.withdrew(let_through)  # what is under way at the same time tells of one and the same trouble
        else:
            self._failed_at = now()
            self._breaker.failed(let_through, self._failed_at)
        return outcome

    async def _race(self, queries: Queries, begun: float, deadline: float) -> Scored | Failed:
        """Ask, and once more after each while or failure; the first answer that fits counts."""
        now = asyncio.get_running_loop().time
        body = encode(queries)
        since: dict[asyncio.Task[bytes | Failed], float] = {}  # questions under way -> when they were asked
        first = asyncio.ensure_future(self._ask(body))
        since[first] = begun
        self._hedging.asked()
        hedge_at, asked, most = begun + self._hedging.wait_s(), 1, 1 + self._config.hedge.more
        failure = Failed(kind="late", detail="no answer within the deadline")
        try:
            while since and now() < deadline:
                due = min(hedge_at, deadline) if asked < most else deadline
                done, _ = await asyncio.wait(since, timeout=due - now(), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    found = _read(task.result(), queries)
                    if isinstance(found, Answers):
                        hedged = task is not first
                        return Scored(answers=found, took_s=now() - begun, asked=asked, hedged=hedged)
                    del since[task]
                    failure = found
                if failure.kind == "refused":
                    break
                if asked < most and (done or now() >= hedge_at):
                    if not self._hedging.may_hedge():
                        most = asked
                        continue
                    since[asyncio.ensure_future(self._ask(body))] = now()
                    hedge_at, asked = now() + self._hedging.wait_s(), asked + 1
        finally:
            for task, at in since.items():
                self._hedging.took(now() - at)  # of the one that answered, and at least this of the others
                task.cancel()
        return replace(failure, took_s=now() - begun, asked=asked)


def _read(said: bytes | Failed, asked: Queries) -> Answers | Failed:
    if isinstance(said, Failed):
        return said
    try:
        answers: Answers = decode_answers(said)
    except msgspec.DecodeError as error:
        return Failed(kind="failed", detail=f"the answer cannot be read: {error}")
    return answers if answers.fits(asked) else Failed(kind="failed", detail="the answer is of other tasks or agents")
