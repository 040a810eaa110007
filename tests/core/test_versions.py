"""Which version of the router is in force: a durable decision, kept through restarts and snapshots."""

from __future__ import annotations

import msgspec
import pytest

from flowray.core.book import ROUTER_RECORDS, Book
from flowray.core.commands import DurableCommand, RecordVersion
from flowray.core.coordination import Coordination
from flowray.core.events import VersionDecided
from flowray.core.model import RouterPlace, RouterRecord, Snapshot
from flowray.core.rollout import Evidence, Rollout, RolloutPolicy, RolloutStage, Seen

from .builders import Team

OLD, NEW = RouterPlace("v1", "/a", "/h"), RouterPlace("v2", "/b", "/h")


def record(arrow: str, stage: RolloutStage, live: RouterPlace = OLD, other: RouterPlace | None = NEW, **more):
    return RouterRecord(at=0.0, arrow=arrow, stage=stage, live=live, other=other, why="because", **more)


def test_it_is_journalled_at_the_cores_time():
    team = Team()
    team.now = 12.5
    (command,) = team.tell(VersionDecided(record("offered", RolloutStage.SHADOW)))
    assert isinstance(command, RecordVersion)
    assert command.durable
    assert command.at == command.record.at == 12.5


def test_a_restarted_core_knows_it_with_the_evidence():
    rollout = Rollout(RolloutPolicy(), RolloutStage.SHADOW, "v2")
    for _ in range(10):
        rollout.saw(Seen(False, 1.0, 0.25, -0.5))
    team = Team()
    team.tell(VersionDecided(record("offered", RolloutStage.SHADOW)))
    team.tell(VersionDecided(record("noted", RolloutStage.SHADOW, evidence=rollout.evidence())))
    written = msgspec.msgpack.encode(team.journal)
    team.journal = msgspec.msgpack.decode(written, type=list[DurableCommand])
    team.restart()
    last = team.core.book.routers[-1]
    assert (last.stage, last.live, last.other) == (RolloutStage.SHADOW, OLD, NEW)
    again = Rollout(RolloutPolicy(), last.stage, "v2", last.evidence)
    assert again.evidence() == rollout.evidence() != Evidence()


def test_a_snapshot_keeps_it():
    team = Team()
    team.tell(VersionDecided(record("promoted", RolloutStage.WATCHED, NEW, OLD)))
    snapshot = msgspec.msgpack.decode(msgspec.msgpack.encode(team.core.snapshot()), type=Snapshot)
    core = Coordination.recover(epoch=2, rng=team.core.rng, now=1.0, snapshot=snapshot)
    assert core.book.routers == team.core.book.routers


def test_a_snapshot_of_an_earlier_release_has_none():
    old = msgspec.msgpack.encode({"at": 1.0, "next_seq": 3})
    book = Book()
    book.restore(msgspec.msgpack.decode(old, type=Snapshot))
    assert book.routers == []


def test_notes_replace_one_another_and_the_list_is_bounded():
    book = Book()
    for _ in range(3):
        book.apply(RecordVersion(record("noted", RolloutStage.SHADOW)))
    assert len(book.routers) == 1
    for _ in range(ROUTER_RECORDS + 50):
        book.apply(RecordVersion(record("offered", RolloutStage.SHADOW)))
    assert len(book.routers) == ROUTER_RECORDS
    assert all(each.arrow == "offered" for each in book.routers)


@pytest.mark.parametrize("stage", list(RolloutStage))
def test_every_stage_travels(stage):
    command = RecordVersion(record("x", stage))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([command]), type=list[DurableCommand]) == [command]
