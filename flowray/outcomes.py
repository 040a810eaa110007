"""What an outcome is to its caller: the error that `.result()` raises, and the story as plain lines."""

from __future__ import annotations

from flowray.core.model import Outcome, StoryLine
from flowray.core.states import TaskState
from flowray.errors import TaskCancelled, TaskError, TaskExpired, TaskFailed


def error_of(outcome: Outcome) -> TaskError:
    """The error that `.result()` raises for an outcome without a value."""
    failure = outcome.failure
    message = failure.message if failure is not None else ""
    story = "\n".join(story_line(line, outcome.accepted_at) for line in outcome.story)
    if outcome.state is TaskState.CANCELLED:
        return TaskCancelled(outcome.task_id, message, story)
    if outcome.state is TaskState.EXPIRED:
        return TaskExpired(outcome.task_id, message, story)
    kind = failure.type if failure is not None else ""
    detail = f"{kind}: {message}" if kind else message
    return TaskFailed(outcome.task_id, detail, story, kind, failure.traceback if failure is not None else "")


def story_line(line: StoryLine, since: float) -> str:
    """One line of a story, for people; its time counts from `since`."""
    where = f" #{line.attempt} on {line.agent_id}" if line.attempt and line.agent_id else ""
    return f"+{line.at - since:.3f} s  {line.what}{where}" + (f": {line.detail}" if line.detail else "")
