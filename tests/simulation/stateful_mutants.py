"""Bugs planted in stateful agents: part of `mutants.MUTANTS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowray.core.commands import ActivateSeat, DeliverInput, KeepSnapshot
from flowray.core.coordination import Coordination
from flowray.core.inboxes import Inboxes
from flowray.core.stateful import Stateful
from flowray.testing.stateful import StatefulProcess

Plant = Callable[[], None]


def stateful_mutants(swap: Callable[..., Plant], put: Callable[[type, str, Any], Plant]) -> dict[str, Plant]:
    """By name, as `mutants.MUTANTS` has them."""
    s, p = Stateful, StatefulProcess
    return {
        "an input is delivered before it is on disk": put(DeliverInput, "waits", False),
        "a process is active before that is on disk": put(ActivateSeat, "waits", False),
        "promoted in the same term": swap(s, "_elect", "inbox.term + 1", "inbox.term + (not inbox.term)"),
        "outputs of earlier terms count": swap(
            s, "output", "event.term != instance.inbox.term or event.agent_id != instance.inbox.seat", "False"
        ),
        "the log is cut before the snapshot is on disk": put(KeepSnapshot, "durable", False),
        "a snapshot counts before the outputs": swap(s, "snapshot_made", " or event.seq >= first", ""),
        "an input is applied twice after a promotion": swap(
            p, "_take", "self._todo.append(following)", "self._todo.extend([following] * (1 + (self.term > 1)))"
        ),
        "an input is left out": swap(
            s, "_deliver", "if logged is None:", "if logged is None or seq % 7 == 3 and len(instance.seats) > 1:"
        ),
        "a restored process lacks the log": swap(
            s, "_settle", "seat.position = inbox.base", "seat.position = inbox.last"
        ),
        "kept outputs are dropped too early": swap(
            s, "_deliver", "inbox.unanswered.values()), inbox.next_seq) - 1", "()), inbox.next_seq) - 1"
        ),
        "kept outputs are dropped at a promotion": swap(p, "_activate", "in kept.values():", "in ():"),
        "a standby keeps what is left out": swap(s, "_blame", "if other.position >= head:", "if False:"),
        "found: outputs count after an input was left out": swap(
            Inboxes, "skipped", 'inbox.seat, inbox.seat_incarnation = AgentId(""), 0', "pass"
        ),
        "a poisonous input is never left out": swap(
            s, "_blame", "if kills < core.policy.retry.poison_kills:", "if True:"
        ),
        "inputs not in the snapshot of the core": swap(
            Inboxes, "snapshot", "inputs=tuple(inbox.inputs.values())", "inputs=()"
        ),
        "terms not in the snapshot of the core": swap(
            Inboxes, "restore", "one.term, AgentId(one.seat)", "0, AgentId(one.seat)"
        ),
        "an overdue snapshot is waited for": swap(s, "snapshot_due", "instance.mark = 0", "pass"),
        "what has its number is cancelled": swap(
            Coordination, "_on_cancel", "if self.stateful.is_logged(entry):", "if False:"
        ),
        "the active process is not waited for": swap(
            s, "_elect", "(AgentState.STARTING, AgentState.READY, AgentState.DRAINING)", "()"
        ),
    }
