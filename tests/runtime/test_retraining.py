"""Training on beside a running team: when, what is offered, what stays on disk, and that its failures cost nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
from test_router_versions import NEW, OLD, POLICY, ROUTING, Says
from test_routing import Desk, until

from flowray.config import load
from flowray.core.retraining import RetrainConfig
from flowray.core.rollout import RolloutStage
from flowray.errors import ConfigError, FlowrayError, RouterRefused
from flowray.runtime.retraining import Retrainer
from flowray.runtime.rollout import VersionedRouter
from flowray.runtime.trainer import DIRECTORY, Trained, TrainOrder, exported, tidy, train
from flowray.testing import make_outcomes

CONFIG = RetrainConfig(enabled=True, every_s=100.0, least=10, wait_s=20.0, longest_wait_s=80.0)
SHIPPED = Path(__file__).parents[2] / "models" / "router" / "v1"


class Team:
    """A desk with a router that has learned something, and a trainer that does as it is told."""

    def __init__(self, monkeypatch, *found: Trained | Exception) -> None:
        self.found = list(found)
        self.orders: list[TrainOrder] = []
        self.now = 0.0
        self.versions = VersionedRouter(Says("v1"), OLD, POLICY, ROUTING)
        self.it = Desk(lambda: self.versions)
        monkeypatch.setattr("flowray.runtime.routing.place_of", lambda artifact, history="": NEW)
        monkeypatch.setattr("flowray.runtime.routing.read", lambda place: Says(place.version))
        self.retrainer: Retrainer | None = None

    async def loaded(self) -> Retrainer:
        self.it.desk.begin()
        await until(lambda: self.it.desk.version)
        return Retrainer(CONFIG, self.it.desk, self.train, lambda: self.now)

    async def train(self, order: TrainOrder) -> Trained:
        self.orders.append(order)
        found = self.found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def test_a_candidate_is_offered_and_nothing_more_while_it_is_on_trial(monkeypatch):
    team = Team(monkeypatch, Trained("/new", "/h", "{}"))

    async def scenario():
        retrainer = await team.loaded()
        assert await retrainer.look() == "", "nothing was learned yet"
        team.versions.learned = 50
        team.now = 99.0
        assert await retrainer.look() == "", "it is not time"
        team.now = 100.0
        assert await retrainer.look() == "v2"
        assert team.versions.stage is RolloutStage.SHADOW
        team.now, team.versions.learned = 1_000.0, 500
        assert await retrainer.look() == ""

    asyncio.run(scenario())
    (order,) = team.orders
    assert (order.artifact, order.history) == (OLD.artifact, OLD.history)
    assert OLD.artifact in order.in_use


def test_a_trainer_that_dies_is_tried_again_after_a_while(monkeypatch, capsys):
    died = RuntimeError("the actor died")
    team = Team(monkeypatch, died, died, Trained("/new", "/h", "{}"))

    async def scenario():
        retrainer = await team.loaded()
        team.versions.learned = 50
        for at, offered in ((100.0, ""), (119.0, ""), (120.0, ""), (159.0, ""), (160.0, "v2")):
            team.now = at
            assert await retrainer.look() == offered

    asyncio.run(scenario())
    assert len(team.orders) == 3
    told = capsys.readouterr().err
    assert "again in 20 s: RuntimeError: the actor died" in told
    assert "again in 40 s" in told


def test_nothing_learned_is_no_failure(monkeypatch):
    team = Team(monkeypatch, Trained(nothing="nothing better"))

    async def scenario():
        retrainer = await team.loaded()
        team.versions.learned, team.now = 50, 100.0
        assert await retrainer.look() == ""
        team.now = 150.0
        assert await retrainer.look() == "", "the next time is a hundred seconds later"

    asyncio.run(scenario())
    assert len(team.orders) == 1
    assert team.versions.stage is RolloutStage.IDLE


def test_one_that_is_refused_is_told(monkeypatch, capsys):
    team = Team(monkeypatch, Trained("/new", "/h", "{}"))

    async def offered_meanwhile(order):
        team.versions.offer(Says("v3"), NEW)
        return team.found.pop(0)

    async def scenario():
        retrainer = await team.loaded()
        retrainer._train = offered_meanwhile
        team.versions.learned, team.now = 50, 100.0
        assert await retrainer.look() == ""

    asyncio.run(scenario())
    assert "the candidate was not tried" in capsys.readouterr().err


def test_it_needs_a_router_to_go_on_from():
    with pytest.raises(ConfigError, match="name one in"):
        load(None, {}, {"router.retrain.enabled": True})
    assert load(None, {}, {"router.retrain.enabled": True, "router.artifact": "/x"}).router.retrain.enabled


class TestOnDisk:
    def made(self, place: Path, *numbers: int) -> None:
        for number in numbers:
            for inner in ("router", "history"):
                (place / f"candidate-{number:06d}" / inner).mkdir(parents=True)

    def left(self, place: Path) -> list[int]:
        return sorted(int(each.name.removeprefix("candidate-")) for each in place.glob("candidate-*"))

    def test_the_newest_stay_and_those_in_use(self, tmp_path):
        self.made(tmp_path, *range(1, 8))
        (tmp_path / "export-left" / "receipts").mkdir(parents=True)
        used = str(tmp_path / "candidate-000001" / "router"), str(tmp_path / "candidate-000003" / "history"), ""
        gone = tidy(tmp_path, used, 2)
        assert self.left(tmp_path) == [1, 3, 6, 7]
        assert "export-left" in gone

    def test_none_is_wanted(self, tmp_path):
        self.made(tmp_path, 1, 2)
        tidy(tmp_path, (str(tmp_path / "candidate-000002" / "router"),), 0)
        assert self.left(tmp_path) == [2]


def copies(journal: Path, directory: Path, most: int) -> int:
    """Stands for what the journal has: a set that lies beside it."""
    shutil.copytree(journal / "recorded", directory)
    return 1


def journal_with(tmp_path: Path, tasks: int) -> tuple[Path, Path]:
    journal = tmp_path / "journal"
    journal.mkdir()
    make_outcomes(journal / "recorded", tasks=tasks, agents=4)
    return journal, make_outcomes(tmp_path / "history", tasks=60, agents=4)


@pytest.mark.slow
def test_a_training_leaves_a_candidate_and_nothing_else(tmp_path):
    journal, history = journal_with(tmp_path, 150)
    config = RetrainConfig(enabled=True, least=100, epochs=1, keep=2)
    order = TrainOrder(str(SHIPPED), "", config)
    found = train(journal, order, copies)
    assert found.nothing == ""
    assert sorted(each.name for each in (journal / DIRECTORY).iterdir()) == ["candidate-000001"]
    assert Path(found.history) == journal / DIRECTORY / "candidate-000001" / "history"
    again = train(journal, TrainOrder(str(SHIPPED), str(history), RetrainConfig(enabled=True, least=10_000)), copies)
    assert "at least 10000" in again.nothing


def test_nothing_to_learn_from(tmp_path):
    (tmp_path / "journal").mkdir()
    found = train(tmp_path / "journal", TrainOrder(str(SHIPPED), "", CONFIG), lambda *args: 0)
    assert "no ended task has a text" in found.nothing


def test_a_journal_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FlowrayError):
        exported(tmp_path, tmp_path / "out", 10)


@pytest.mark.ray
@pytest.mark.slow
def test_in_an_actor_and_when_that_dies(ray_address, tmp_path):
    import ray

    from flowray.runtime.trainer import train_on_ray

    def copied(journal: Path, directory: Path, most: int) -> int:  # within: the actor cannot import this module
        shutil.copytree(journal / "recorded", directory)
        return 1

    def dies(journal: Path, directory: Path, most: int) -> int:
        directory.mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    journal, _ = journal_with(tmp_path, 150)
    node = ray.get_runtime_context().get_node_id()
    order = TrainOrder(str(SHIPPED), "", RetrainConfig(enabled=True, least=100, epochs=1))
    found = asyncio.run(train_on_ray(journal, node, order, copied))
    assert Path(found.history).is_dir()
    with pytest.raises(ray.exceptions.RayActorError):
        asyncio.run(train_on_ray(journal, node, order, dies))
    assert len(list((journal / DIRECTORY).glob("export-*"))) == 1, "left by the one that died"
    asyncio.run(train_on_ray(journal, node, order, copied))
    assert not list((journal / DIRECTORY).glob("export-*"))


def test_an_offer_to_a_desk_without_a_router():
    async def scenario():
        it = Desk()
        with pytest.raises(RouterRefused, match="not loaded yet"):
            await it.desk.offer("/new", "")

    asyncio.run(scenario())
