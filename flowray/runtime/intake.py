"""What drivers bring and fetch: tasks for the core, and outcomes of tasks that may have ended long ago.

A task that the core does not know any more has its outcome in the store: a repeat of it is answered from there.
"""

from __future__ import annotations

from collections.abc import Callable

from flowray.core.coordination import Coordination
from flowray.core.events import Event, TaskSubmitted
from flowray.core.model import Outcome, Task, TaskId
from flowray.runtime.clients import Clients, Submission
from flowray.runtime.messages import Answer, Submit
from flowray.store import Store
from flowray.values import require_plain

BACKLOG_RATIO = 0.8  # of the journal's queue: beyond it new tasks are refused, and chunks put off


class Intake:
    """See the module. Use only from the coordinator's event loop."""

    def __init__(self, core: Coordination, store: Store, clients: Clients, put: Callable[[Event], None]) -> None:
        """`put` hands an event to the core."""
        self._core = core
        self._store = store
        self._clients = clients
        self._put = put

    def submit(self, client_id: str, message: Submit, *, outside: bool) -> None:
        """Take these tasks. Raises PayloadError for something pickled that comes from outside the cluster."""

        def done(answers: list[Answer]) -> None:
            self._clients.answered(client_id, message.number, answers)

        submission = Submission(client_id, len(message.tasks), done)
        if not message.tasks:
            done([])
        if outside:
            for task in message.tasks:
                if task.payload is not None:
                    require_plain(task.payload.codec, "payload")
        behind = self._store.backlog_ratio > BACKLOG_RATIO
        earlier = self._ended_before(message)
        for position, task in enumerate(message.tasks):
            outcome = earlier.get(task.id) or earlier.get(task.key) if earlier else None
            if outcome is not None:
                submission.put(position, self._known(client_id, task, outcome))
            elif behind:
                submission.put(position, Answer(task.id, "queue_full", "the journal is behind", 0.5))
            else:
                self._clients.expect(submission, position, task.id)
                self._put(TaskSubmitted(task))

    def want(self, client_id: str, task_ids: list[str]) -> None:
        """This client waits for these tasks: what has ended goes out at once, the rest when it ends."""
        ended: list[str] = []
        for task_id in task_ids:
            is_open = self._core.task(TaskId(task_id)) is not None
            if is_open or self._core.admission.recent(TaskId(task_id)):  # its outcome may not be on disk yet
                self._clients.want(client_id, task_id)
            if not is_open:
                ended.append(task_id)
        if not ended:
            return
        outcomes = self._store.outcomes(ended)
        unknown: list[str] = []
        for task_id in ended:
            if task_id in outcomes:
                self._clients.want(client_id, task_id)
                self._clients.resolved(outcomes[task_id])
            elif not self._core.admission.recent(TaskId(task_id)):
                unknown.append(task_id)
        self._clients.unknown(client_id, unknown)

    def catch_up(self, task_id: str) -> None:
        """A repeat of a task that has ended: its outcome is in the store already."""
        if self._core.task(TaskId(task_id)) is None:
            outcome = self._store.outcome(task_id)
            if outcome is not None:
                self._clients.resolved(outcome)

    def _ended_before(self, message: Submit) -> dict[str, Outcome]:
        """Outcomes of repeats, by task id or key: of tasks that the core has forgotten because they have ended."""
        found: dict[str, Outcome] = {}
        keys = [t.key for t in message.tasks if t.key and self._core.admission.by_key(t.key) is None]
        if keys:
            found.update(self._store.by_key(keys))
        if message.again:
            found.update(self._store.outcomes([t.id for t in message.tasks]))
        return found

    def _known(self, client_id: str, task: Task, outcome: Outcome) -> Answer:
        if task.id != outcome.task_id and task.fingerprint != outcome.fingerprint:
            detail = f"key {task.key!r} belongs to task {outcome.task_id}, which asked for something else"
            return Answer(task.id, "conflict", detail)
        self._clients.give(client_id, outcome)
        return Answer(outcome.task_id)
