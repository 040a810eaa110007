"""A journal row: made in one look at its commands, and the same bytes as if each had been encoded by itself."""

from __future__ import annotations

import msgspec

from flowray.core.commands import DurableCommand, GradeTask, RecordChunks, ResolveTask
from flowray.core.model import Asked, TaskId
from flowray.core.states import TaskState
from flowray.store import records
from flowray.store.records import Group

from .builders import accept, outcome, resolve, start, task

DEAD = ResolveTask(outcome(3, state=TaskState.DEAD), task(3), Asked("Summarise", counts={"n_tools": 2.0}))
CHUNKS = RecordChunks(TaskId("t-000004"), 1, 1, 0, 4.2, digests=b"d" * 8, size_bytes=3, body=b"abc")
GRADE = GradeTask(TaskId("t-000001"), 0.5, 9.5, "me")
COMMANDS: list[DurableCommand] = [accept(1), start(1), resolve(1), GRADE, CHUNKS, DEAD]


def test_a_row_is_what_encoding_each_command_gives() -> None:
    bare = [*COMMANDS[:4], msgspec.structs.replace(CHUNKS, body=b""), msgspec.structs.replace(DEAD, asked=None)]
    group = Group(COMMANDS)
    assert group.body == msgspec.msgpack.encode(bare)
    assert records.decode_commands(1, group.body) == bare


def test_what_goes_to_other_tables_is_whole() -> None:
    group = Group(COMMANDS)
    assert group.resolved == [COMMANDS[2], DEAD]
    assert group.outcomes == [msgspec.msgpack.encode(one.outcome) for one in group.resolved]
    assert group.asked
    assert (group.grades, group.chunks) == ([GRADE], [CHUNKS])
    assert group.at == 9.5
    assert not Group(COMMANDS[:3]).asked
