"""Who is where, as the coordinator keeps it: above all when one coordinator follows another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowray.errors import ConfigError
from flowray.mesh.topics import DirectoryCopy
from flowray.runtime.directory import TalkDirectory
from flowray.runtime.messages import Learn, Listen, Listening, Lost, Reach, Reached, Subscribe, Told
from flowray.runtime.subscribers import SubscriberFile

DRIVER = "client-1"


class Coordinators:
    """One after another, with the same file, and the processes that they tell of changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "subscribers"
        self.epoch = 0
        self.copies: dict[str, DirectoryCopy] = {}
        self.sent: list[tuple[str, Any]] = []
        self.begin()

    def begin(self, life: str = "one") -> None:
        """A new coordinator that nobody has come to yet."""
        self.epoch += 1
        self.alive: set[str] = set()
        self.timers: list[Callable[[], None]] = []
        self.sent.clear()
        self.directory = TalkDirectory(
            self.epoch,
            self._send,
            self.alive.__contains__,
            lambda _, call: self.timers.append(call),
            SubscriberFile(self.file, life),
        )

    def _send(self, process: str, message: Any) -> None:
        if process not in self.alive:
            return  # no way to it
        self.sent.append((process, message))
        if isinstance(message, Told) and process in self.copies:
            applied = self.copies[process].apply(message.changes)
            assert applied is not None

    def learn(self, process: str) -> None:
        copy = self.copies.setdefault(process, DirectoryCopy())
        self.alive.add(process)
        self.directory.learn(process, Learn(copy.epoch, copy.version))

    def subscribe(self, process: str, *topics: str, gone: bool = False) -> None:
        self.directory.subscribe(process, Subscribe(process, list(topics), gone))

    def wait(self) -> None:
        """All that was put off happens."""
        timers, self.timers[:] = list(self.timers), []
        for call in timers:
            call()

    def said_to(self, process: str, kind: type) -> list[Any]:
        return [message for to, message in self.sent if to == process and isinstance(message, kind)]


@pytest.fixture
def coordinators(tmp_path: Path) -> Coordinators:
    """A driver has subscribed to "news"; the process of an agent knows, and the coordinator was replaced."""
    made = Coordinators(tmp_path)
    made.directory.complete()
    made.learn("agents-1")
    made.learn(DRIVER)
    made.subscribe(DRIVER, "news")
    made.wait()
    assert made.copies["agents-1"].subscribers("news") == (DRIVER,)
    made.begin()
    made.directory.complete()
    return made


def test_what_is_published_before_a_driver_is_back_does_not_miss_it(coordinators):
    coordinators.learn("agents-1")
    assert coordinators.copies["agents-1"].epoch == 2, "it was told by the new one"
    assert coordinators.copies["agents-1"].subscribers("news") == (DRIVER,)
    coordinators.learn("agents-2")  # started since
    assert coordinators.copies["agents-2"].subscribers("news") == (DRIVER,)


def test_a_driver_that_comes_back_stays(coordinators):
    coordinators.learn("agents-1")
    coordinators.learn(DRIVER)
    coordinators.subscribe(DRIVER, "news")
    coordinators.wait()
    coordinators.wait()
    assert coordinators.copies["agents-1"].subscribers("news") == (DRIVER,)


def test_a_driver_that_never_comes_back_is_given_up(coordinators):
    coordinators.learn("agents-1")
    coordinators.wait()  # its time
    coordinators.wait()  # and the telling
    assert coordinators.copies["agents-1"].subscribers("news") == ()
    assert [lost.process for lost in coordinators.said_to("agents-1", Lost)] == [DRIVER]
    coordinators.begin()
    coordinators.directory.complete()
    coordinators.learn("agents-1")
    assert coordinators.copies["agents-1"].subscribers("news") == (), "nor does the next one wait for it"


def test_a_subscription_that_ended_without_a_coordinator_is_given_up(coordinators):
    coordinators.learn("agents-1")
    coordinators.learn(DRIVER)  # it is back, and says nothing of subscriptions
    coordinators.wait()
    coordinators.wait()
    assert coordinators.copies["agents-1"].subscribers("news") == ()
    assert coordinators.said_to("agents-1", Lost) == []


def test_who_wants_to_reach_a_driver_that_is_not_back_waits_for_it(coordinators):
    coordinators.learn("agents-2")
    coordinators.directory.reach("agents-2", Reach(DRIVER))
    assert coordinators.said_to("agents-2", Reached) == []
    coordinators.learn(DRIVER)
    assert coordinators.said_to(DRIVER, Listen) == [Listen()]
    coordinators.directory.listening(DRIVER, Listening("node", "/socket"))
    assert coordinators.said_to("agents-2", Reached) == [Reached(DRIVER, "node", "/socket")]


def test_who_wants_to_reach_a_driver_that_never_comes_back_is_told(coordinators):
    coordinators.learn("agents-2")
    coordinators.directory.reach("agents-2", Reach(DRIVER))
    coordinators.wait()
    assert [bool(one.reason) for one in coordinators.said_to("agents-2", Reached)] == [True]


def test_nobody_else_is_waited_for(coordinators):
    coordinators.learn("agents-2")
    coordinators.directory.reach("agents-2", Reach("client-2"))
    assert "no such process" in coordinators.said_to("agents-2", Reached)[0].reason


def test_another_life_of_the_runtime_waits_for_nobody(coordinators):
    coordinators.begin("two")
    coordinators.directory.complete()
    coordinators.learn("agents-9")
    assert coordinators.copies["agents-9"].subscribers("news") == ()
    assert coordinators.timers == []


def test_a_driver_takes_no_name_but_its_own(coordinators):
    with pytest.raises(ConfigError, match="not a name that 'client-2' may take"):
        coordinators.directory.subscribe("client-2", Subscribe(DRIVER, ["news"]))


@pytest.mark.parametrize("content", [b"", b"\xc1", msgspec.msgpack.encode(["one", 7])])
def test_a_file_that_cannot_be_read_is_said_and_survived(coordinators, content, capsys):
    coordinators.file.write_bytes(content)
    coordinators.begin()
    coordinators.directory.complete()
    coordinators.learn("agents-1")
    assert coordinators.copies["agents-1"].subscribers("news") == ()
    assert f"cannot read {coordinators.file}" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_said_and_survived(coordinators, capsys):
    coordinators.file.unlink()
    coordinators.file.mkdir()
    coordinators.learn("agents-1")
    coordinators.learn("client-2")
    coordinators.subscribe("client-2", "news")
    coordinators.wait()
    assert "client-2" in coordinators.copies["agents-1"].subscribers("news")
    assert f"cannot write {coordinators.file}" in capsys.readouterr().err


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["subscribe", "leave", "told", "crash", "back"]), st.sampled_from(["client-1", "client-2"])
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_who_was_once_known_to_subscribe_is_missed_by_nobody_until_it_leaves(tmp_path, steps):
    """Whatever happens in whatever order, short of the end of the time that drivers are given to come back."""
    (tmp_path / "subscribers").unlink(missing_ok=True)
    world = Coordinators(tmp_path)
    world.directory.complete()
    world.learn("agents")
    wants: set[str] = set()
    known: set[str] = set()
    for step, driver in steps:
        back = driver in world.alive
        if step == "crash":
            world.begin()
            world.directory.complete()
            world.learn("agents")
        elif step == "back" and not back:
            world.learn(driver)
            if driver in wants:
                world.subscribe(driver, "news")
        elif step == "subscribe" and back:
            wants.add(driver)
            world.subscribe(driver, "news")
        elif step == "leave" and back:
            wants.discard(driver)
            known.discard(driver)
            world.subscribe(driver, gone=True)
        elif step == "told":
            due, world.timers[:] = list(world.timers), []
            for call in due:
                if call == world.directory._wait_no_longer:
                    world.timers.append(call)
                else:
                    call()
        heard = set(world.copies["agents"].subscribers("news"))
        known |= heard & wants
        assert known <= heard
