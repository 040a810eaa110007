"""What an attempt is to the user's code, wherever it runs: the task it sees, and what its exceptions become."""

from __future__ import annotations

import traceback
from collections.abc import Container
from typing import Any

from msgspec import structs

from flowray.agents import Task
from flowray.core import model
from flowray.core.model import Failure
from flowray.errors import PayloadError, RetryableError

# Errors worth another attempt; an agent's own `retry_on` adds to them.
RETRY_ON: tuple[type[BaseException], ...] = (RetryableError, ConnectionError, TimeoutError)
_MAX_MESSAGE = 2_000
_MAX_TRACEBACK = 20_000


def task_for(task: model.Task, attempt: int, payload: Any) -> Task:
    """The task as `run` receives it, with its payload decoded."""
    return Task(
        id=task.id,
        prompt=task.prompt,
        payload=payload,
        needs=task.needs,
        priority=task.priority,
        attempt=attempt,
        labels=task.labels,
    )


def failure_of(error: BaseException, retry_on: tuple[type[BaseException], ...], host: Container[str]) -> Failure:
    """What the caller learns of an exception in user code.

    The traceback is as the user's code would have printed it: leading frames in the files of `host` are left out.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in host:
        trace = trace.tb_next
    return Failure(
        kind="application",
        type=type(error).__name__,
        message=str(error)[:_MAX_MESSAGE],
        traceback="".join(traceback.format_exception(type(error), error, trace))[-_MAX_TRACEBACK:],
        retryable=isinstance(error, (*RETRY_ON, *retry_on)) and not isinstance(error, PayloadError),
    )


def failure_of_verify(failure: Failure) -> Failure:
    """The same, told as what it is: `run` gave an answer, and it was the verifier that raised."""
    return structs.replace(failure, message=f"verify, after run had answered: {failure.message}"[:_MAX_MESSAGE])
