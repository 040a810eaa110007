"""What the checks see: the state as it should be, and each way in which it is spoiled here."""

from __future__ import annotations

import pytest

from flowray.core.invariants import check_coordination, check_touched
from flowray.core.model import Held
from flowray.core.naming import attempt_key
from flowray.core.queueing import LaneKey
from flowray.errors import InvariantBroken

from .builders import Team, failure

WAITS, RUNS, BACKS_OFF = "waits", "runs", "backs off"


@pytest.fixture
def team() -> Team:
    """One task that runs, one that waits, one that backs off."""
    team = Team()
    team.ready(slots=1)
    team.submit(BACKS_OFF)
    team.answer("writer-0", BACKS_OFF, failure=failure())
    team.submit(RUNS, deadline_s=10.0, idempotent=True)
    team.submit(WAITS)
    return team


def lane(team):
    return team.core.queue.find(team.core.task(WAITS))


def agent(team):
    return team.core.registry.agent("writer-0")


SPOILED = {
    "in no lane": (WAITS, lambda team: lane(team).remove(WAITS)),
    "in a lane while it runs": (RUNS, lambda team: lane(team).push(team.core.task(RUNS), 7)),
    "in two lanes": (WAITS, lambda team: other(team).push(team.core.task(WAITS), 7)),
    "with nobody": (RUNS, lambda team: agent(team).outstanding.clear()),
    "without a deadline": (RUNS, lambda team: team.core.timers.clear("deadline", RUNS)),
    "without an end of its back-off": (BACKS_OFF, lambda team: team.core.timers.clear("backoff", BACKS_OFF)),
    "with a back-off while it waits": (WAITS, lambda team: team.core.timers.set("backoff", WAITS, 9.0)),
    "hedged while it waits": (WAITS, lambda team: team.core.timers.set("hedge", WAITS, 9.0)),
    "failed too often": (RUNS, lambda team: setattr(team.core.book.open[RUNS], "failures", 3)),
    "twice on one agent": (RUNS, lambda team: twice(team)),
}


def other(team):
    team.core.queue._lanes["other"] = found = type(lane(team))(LaneKey("", "", ("other",)))
    return found


def twice(team):
    entry = team.core.book.open[RUNS]
    entry.extra = Held(2, 1, entry.agent_id, entry.incarnation, 0.0)
    entry.attempts = 2
    assert attempt_key(RUNS, 2) not in team.core.timers


def test_nothing_is_wrong_at_first(team):
    check_coordination(team.core)
    check_touched(team.core, [WAITS, RUNS, BACKS_OFF, "never seen"], ["writer-0", "never seen"])


@pytest.mark.parametrize("how", SPOILED)
def test_a_task_that_is_not_where_it_should_be_is_seen_by_who_looks_at_it(team, how):
    name, spoil = SPOILED[how]
    spoil(team)
    with pytest.raises(InvariantBroken, match=name):
        check_touched(team.core, [name], [])
    with pytest.raises(InvariantBroken):
        check_coordination(team.core)


def test_an_agent_that_is_not_what_it_should_be_is_seen_by_who_looks_at_it(team):
    agent(team).outstanding["gone"] = 1
    with pytest.raises(InvariantBroken, match="gone"):
        check_touched(team.core, [], ["writer-0"])
    del agent(team).outstanding["gone"]
    had, agent(team).room = agent(team).room, "free"
    with pytest.raises(InvariantBroken, match="writer-0: free room, by its own account"):
        check_touched(team.core, [], ["writer-0"])
    agent(team).room = had
    agent(team).stopping["gone", 1, 1] = 0.0
    with pytest.raises(InvariantBroken, match="writer-0: stopping for ever"):
        check_touched(team.core, [], ["writer-0"])
    with pytest.raises(InvariantBroken):
        check_coordination(team.core)


def test_what_nobody_named_is_seen_by_who_looks_at_everything(team):
    team.core.timers.clear("deadline", RUNS)
    check_touched(team.core, [WAITS], [])
    with pytest.raises(InvariantBroken, match="runs: deadline timer"):
        check_coordination(team.core)


def test_sums_and_idle_agents_are_always_looked_at(team):
    team.core.admission.open_tasks += 1
    with pytest.raises(InvariantBroken, match="4 counted, 3 open"):
        check_touched(team.core, [], [])
    team.core.admission.open_tasks -= 1
    lane(team).free.add(agent(team).agent_class)
    with pytest.raises(InvariantBroken, match="beside an idle capable agent"):
        check_touched(team.core, [], [])
