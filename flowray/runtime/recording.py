"""An agent's recorded steps on their way: kept here until a coordinator says that they are on disk.

As with results, coordinators may come and go in between: what was not answered is sent again to the next one. A step is
also sent again after a moment where a coordinator has not found this process yet. The core takes the first record of a
name and says what stands, so sending twice does no harm.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from flowray.core.commands import AnswerStep
from flowray.core.events import StepFinished
from flowray.core.model import AgentId, Payload, TaskId
from flowray.core.steps import INLINE_BYTES
from flowray.errors import StaleAttempt, StepLimit
from flowray.runtime.messages import Start, Step, StepAnswer
from flowray.runtime.payloads import PayloadDesk

AGAIN_S = 0.1  # until a coordinator that has not found this process yet is asked again

Standing = tuple[bool, Payload | None]  # (was another record there first?, what stands)


def event_of(step: Step) -> StepFinished:
    """What the core is told."""
    token = (TaskId(step.task_id), step.attempt, step.epoch)
    return StepFinished(*token, AgentId(step.agent_id), step.incarnation, step.name, step.value, step.number)


def answer_of(command: AnswerStep) -> StepAnswer:
    """What the agent is told, once it is on disk."""
    return StepAnswer(command.agent_id, command.number, command.verdict, command.value, command.detail)


class _Pending:
    __slots__ = ("answer", "sent", "step")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.sent = False
        self.answer: Future[Standing] = Future()
        self.answer.set_running_or_notify_cancel()  # who gives up waiting must not cancel it: it is answered here


class StepDesk:
    """The steps of one agent that wait for a coordinator."""

    def __init__(
        self,
        agent_id: str,
        incarnation: int,
        *,
        send: Callable[[Step], bool],
        soon: Callable[[Callable[[], None]], None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        """`send` and `later` are called on the process's loop; `soon` calls there, from any thread.

        `send` is False while there is nobody to send to.
        """
        self._agent = (agent_id, incarnation)
        self._send = send
        self._soon = soon
        self._later = later
        self._pending: dict[int, _Pending] = {}
        self._number = 0
        self._again_due = False
        self._retired = False
        self._lock = threading.Lock()  # guards what is above

    def ask(self, start: Start, name: str, value: Payload | None) -> tuple[int, Future[Standing]]:
        """Have a step recorded; `forget` the number when the answer is here, or nobody waits for it any more."""
        with self._lock:
            if self._retired:
                raise StaleAttempt(start.task.id, start.attempt, name)
            self._number += 1
            number = self._number
            step = Step(*self._agent, number, start.task.id, start.attempt, start.epoch, name, value)
            pending = self._pending[number] = _Pending(step)
        self._soon(self.flush)
        return number, pending.answer

    def forget(self, number: int) -> None:
        """Nobody waits for this answer."""
        with self._lock:
            self._pending.pop(number, None)

    # ── on the process's loop ────────────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """Send what has not been sent."""
        with self._lock:
            waiting = [pending for pending in self._pending.values() if not pending.sent]
        for pending in waiting:
            if not self._send(pending.step):
                return
            pending.sent = True

    def send_again(self) -> None:
        """There is another coordinator: it has none of what was not answered."""
        with self._lock:
            for pending in self._pending.values():
                pending.sent = False

    def answered(self, message: StepAnswer) -> None:
        """What became of a step."""
        with self._lock:
            pending = self._pending.get(message.number)
            if pending is None:
                return
            if message.verdict == "later":
                pending.sent = False
                due, self._again_due = self._again_due, True
                if not due:
                    self._later(AGAIN_S, self._again)
                return
            del self._pending[message.number]
        step = pending.step
        if message.verdict in ("recorded", "known"):
            pending.answer.set_result((message.verdict == "known", message.value))
        elif message.verdict == "stale":
            pending.answer.set_exception(StaleAttempt(step.task_id, step.attempt, step.name))
        else:
            pending.answer.set_exception(StepLimit(step.name, message.detail))

    def _again(self) -> None:
        with self._lock:
            self._again_due = False
        self.flush()

    def retire(self) -> None:
        """The agent is not wanted any more: nothing it does is recorded."""
        with self._lock:
            self._retired = True
            pending, self._pending = list(self._pending.values()), {}
        for one in pending:
            one.answer.set_exception(StaleAttempt(one.step.task_id, one.step.attempt, one.step.name))


class StepRecorder:
    """The steps of one attempt (`flowray.steps.Recorder`)."""

    def __init__(self, start: Start, desk: StepDesk, payloads: PayloadDesk) -> None:
        self._start = start
        self._desk = desk
        self._payloads = payloads
        self._known: dict[str, Payload | None] = dict(start.steps)
        self._recorded: set[str] = set()  # by this attempt

    def __len__(self) -> int:
        return len(self._known) + len(self._recorded)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def load(self, name: str) -> Any:
        return self._payloads.unpack(self._known[name])

    async def load_beside(self, name: str) -> Any:
        return await self._payloads.unpack_beside(self._known[name])

    def record(self, name: str, value: Any) -> Any:
        payload = self._payloads.pack(value, f"step {name}", inline_bytes=INLINE_BYTES)
        number, answer = self._desk.ask(self._start, name, payload)
        try:
            known, standing = answer.result()
        finally:
            self._desk.forget(number)
        self._recorded.add(name)
        return self._payloads.unpack(standing) if known else value

    async def record_beside(self, name: str, value: Any) -> Any:
        payload = await self._payloads.pack_beside(value, f"step {name}", inline_bytes=INLINE_BYTES)
        number, answer = self._desk.ask(self._start, name, payload)
        try:
            known, standing = await asyncio.wrap_future(answer)
        finally:
            self._desk.forget(number)
        self._recorded.add(name)
        return await self._payloads.unpack_beside(standing) if known else value
