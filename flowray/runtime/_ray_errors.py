"""The only place that knows Ray's exceptions by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray import exceptions as rex

from flowray.errors import CoordinatorUnavailable, FlowrayError, InvalidTask, StoreError

# The process is gone for good, or its node is: no later call can reach it.
GONE: tuple[type[BaseException], ...] = (rex.ActorDiedError, rex.ActorUnschedulableError, rex.TaskUnschedulableError)
# Ray cannot reach it now, and may be starting it again.
ABSENT: tuple[type[BaseException], ...] = (rex.ActorUnavailableError,)
# It may be gone, restarting or only unreachable, and the call may have been executed or not.
UNSURE: tuple[type[BaseException], ...] = (
    rex.ActorUnavailableError,
    rex.GetTimeoutError,
    rex.OwnerDiedError,
    rex.ObjectLostError,
    rex.WorkerCrashedError,
    rex.NodeDiedError,
    rex.RayChannelError,
)
LOST: tuple[type[BaseException], ...] = (rex.RayActorError, *GONE, *UNSURE)
# The process is there and what was asked of it raised.
REFUSED: tuple[type[BaseException], ...] = (rex.RayTaskError,)
# What creating an actor may raise besides: its name is taken, or Ray is shutting down.
NOT_CREATED: tuple[type[BaseException], ...] = (ValueError, RuntimeError, rex.RaySystemError, *LOST)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise flowray's errors where Ray's would come out of the block."""
    try:
        yield
    except rex.RayTaskError as error:
        cause = error.as_instanceof_cause()
        if isinstance(cause, FlowrayError):
            raise cause from None
        raise StoreError(f"{doing}: {cause}") from error
    except LOST as error:
        raise CoordinatorUnavailable(f"{doing}: {brief(error)}") from error


@contextlib.contextmanager
def translated_unless_lost(doing: str) -> Iterator[None]:
    """The same, but the errors that say that a process may be restarting come out as they are, for a retry."""
    try:
        with translated(doing):
            yield
    except CoordinatorUnavailable as error:
        if isinstance(error.__cause__, LOST):
            raise error.__cause__ from None
        raise


def serve_failures() -> tuple[type[BaseException], ...]:
    """What a call by a handle of Serve may raise. A function, for knowing the names loads Serve."""
    from ray.serve.exceptions import RayServeException

    return RayServeException, rex.RayError, RuntimeError, TimeoutError, ConnectionError


def why_unserved(error: BaseException) -> tuple[str, str]:
    """Of what kind such a failure is (full, refused, failed, lost), and in words."""
    from ray.serve.exceptions import BackPressureError

    if isinstance(error, BackPressureError):
        return "full", str(error)
    if isinstance(error, rex.RayTaskError):
        cause = error.as_instanceof_cause()
        return (
            "refused" if isinstance(cause, InvalidTask) else "failed"
        ), f"{type(error.cause).__name__}: {error.cause}"
    return "lost", brief(error)


def seen_dead(error: BaseException) -> bool:
    """Does Ray say that the process has ended? Not where its node was declared dead, or it was told to end.

    The reason is a field of Ray's that Python does not get to see: only its text says it.
    """
    return "its worker process has died" in str(error)


def brief(error: BaseException) -> str:
    """One line of what Ray says, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
