"""What people see of a runtime: the same facts in terminals, notebooks and pipes, and nothing that can do harm."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from flowray.core.model import Choice, Failure, Outcome, StoryLine, Task, TaskId
from flowray.core.states import AgentState, TaskState
from flowray.runtime import render
from flowray.runtime.pictures import by_tier, duration, size, tier_line
from flowray.runtime.render import bar, printable
from flowray.runtime.sentences import explain
from flowray.runtime.views import AgentsView, AgentView, DeadLetter, DeadLetters, NodeView, Status, Story, View

EVIL = "<script>alert(1)</script> & [red]x[/red] \x1b[31m\x07"


def agent(agent_id: str = "names-0", **changes: Any) -> AgentView:
    about = {"name": agent_id.rpartition("-")[0], "tier": "secondary", "state": "ready", "incarnation": 1, "pid": 4000}
    return AgentView(agent_id=agent_id, **{**about, **changes})


def story(*lines: StoryLine, choices: tuple[Choice, ...] = (), state: str = "succeeded") -> Story:
    return Story(
        task_id="t-1", state=state, accepted_at_utc="2025-01-01", lines=lines, choices=choices, accepted_at=100.0
    )


def letter(message: str = "no such column") -> DeadLetter:
    failure = Failure(kind="application", type="ValueError", message=message, traceback="Traceback:\n  here")
    outcome = Outcome(task_id=TaskId("t-1"), state=TaskState.DEAD, failure=failure, agent_id="names-0", attempts=3)
    return DeadLetter(task=Task(id=TaskId("t-1"), prompt=EVIL), outcome=outcome)


FAILOVER = story(
    StoryLine(100.0, "accepted"),
    StoryLine(100.31, "started", 1, "names-3", "first"),
    StoryLine(100.9, "requeued", 1, "names-3", "names-3 was lost: its process ended"),
    StoryLine(100.91, "started", 2, "names-1", "failover"),
    StoryLine(101.2, "attempt_failed", 2, "names-1", "OSError: gone"),
    StoryLine(101.4, "started", 3, "names-0", "retry"),
    StoryLine(102.0, "succeeded", 3, "names-0"),
    choices=(
        Choice("power_of_two", 3, (("names-3", 0.0), ("names-1", 1.0))),
        Choice("only_one", 1, (("names-1", 0.0),)),
        Choice("next_free", 1, (("names-0", 0.0),)),
    ),
)
STATUS = Status(
    name="audit",
    epoch=2,
    at_utc="2025-01-01",
    journal="/j",
    journal_failed=EVIL,
    queued=3,
    running=2,
    backing_off=1,
    ended={"succeeded": 5, "dead": 1},
    agents=(agent("planner-0", tier="orchestrator"), agent("names-1", held=1), agent("x-0", tier=EVIL, failure=EVIL)),
    nodes=(NodeView(node_id="n1", address="10.0.0.1", alive=True, cpus=2, memory_bytes=3 << 30),),
    blocks={"secondary-3": "PENDING"},
    pid=7,
    node="n1",
)
EVERYTHING: list[View] = [
    agent(),
    AgentsView(agents=STATUS.agents),
    AgentsView(),
    STATUS,
    STATUS.nodes[0],
    FAILOVER,
    letter(EVIL),
    DeadLetters(letters=(letter(EVIL), letter())),
    DeadLetters(),
]


def in_terminal(view: View, width: int = 100) -> str:
    console = Console(width=width, force_terminal=True, color_system="truecolor", record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


class Tags(HTMLParser):
    """Which tags and attributes there are, and that they close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("view", EVERYTHING, ids=lambda view: type(view).__name__)
def test_html_is_closed_escaped_and_without_scripts_or_references(view: View) -> None:
    html = view._repr_html_()
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert tags.tags <= {"div", "span", "table", "tr", "td", "th"}
    assert tags.attributes <= {"style", "colspan"}
    assert "url(" not in html


@pytest.mark.parametrize("view", EVERYTHING, ids=lambda view: type(view).__name__)
def test_html_takes_its_colours_from_the_page(view: View) -> None:
    """On a dark page white boxes blind and black text vanishes: only mid tones may be set."""
    colours = set(re.findall(r"(?<![a-z-])color:([^;\"]+)", view._repr_html_()))
    backgrounds = set(re.findall(r"background:([^;\"]+)", view._repr_html_()))
    assert colours <= {"inherit", "#2a9d5c", "#b7811a", "#d64541"}
    assert backgrounds <= {"none", "#b7811a"}


@pytest.mark.parametrize("view", EVERYTHING, ids=lambda view: type(view).__name__)
def test_nothing_that_a_terminal_obeys_gets_through(view: View) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", render.plain(view))
    assert "\x07" not in in_terminal(view)
    assert "\x1b[31m" not in in_terminal(view)


def test_markup_in_texts_is_text() -> None:
    assert "[red]x[/red]" in in_terminal(letter())


def test_a_narrow_terminal_keeps_ids_whole() -> None:
    ids = [f"a-rather-long-name-{n}" for n in range(3)]
    view = AgentsView(agents=tuple(agent(i, capabilities=("one.capability", "another.capability")) for i in ids))
    text = in_terminal(view, width=80)
    assert all(i in text for i in ids)


def test_plain_lines_have_no_trailing_blanks_and_one_agent_each() -> None:
    lines = render.plain(AgentsView(agents=STATUS.agents)).splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert [line.split()[:3] for line in lines if line.startswith("names-")] == [["names-1", "busy", "1/1"]]


def test_tiers_come_in_their_order_and_agents_by_number() -> None:
    agents = [agent("b-10"), agent("b-2"), agent("z-0", tier="gpu"), agent("p-0", tier="primary")]
    assert {tier: [a.agent_id for a in members] for tier, members in by_tier(agents).items()} == {
        "primary": ["p-0"],
        "secondary": ["b-2", "b-10"],
        "gpu": ["z-0"],
    }


def test_a_tier_in_words() -> None:
    agents = [agent(held=1), agent(), agent(state="starting"), agent(state="broken")]
    assert tier_line(agents) == "4 agents, 1 busy, 1 idle, 1 broken, 1 starting"
    assert tier_line([agent()]) == "1 agent, 1 idle"


@pytest.mark.parametrize("state", [state.value for state in AgentState])
def test_every_state_of_an_agent_can_be_drawn(state: str) -> None:
    assert state in render.plain(agent(state=state))


def test_the_node_is_told_only_where_there_are_several() -> None:
    one, two = agent("a-0", node="10.0.0.1"), agent("a-1", node="10.0.0.2")
    assert "node" not in render.plain(AgentsView(agents=(one,)))
    assert "10.0.0.2" in render.plain(AgentsView(agents=(one, two)))


def test_a_status_names_the_coordinators_node_by_its_address() -> None:
    assert "coordinator pid 7 on 10.0.0.1" in render.plain(STATUS)


def test_the_timeline_of_a_failover() -> None:
    assert render.plain(FAILOVER).splitlines()[1:] == [
        "+0.00 s  accepted",
        "+0.31 s  started on names-3 (power of two choices: load 0.0 against 1.0, 3 candidates)",
        "+0.90 s  attempt 1 was lost with names-3; waiting again: names-3 was lost: its process ended",
        "+0.91 s  started on names-1 (its last agent was lost or gave it back; the only agent with room)",
        "+1.20 s  attempt 2 failed on names-1: OSError: gone",
        "+1.40 s  started on names-0 (another try; the first agent to get free)",
        "+2.00 s  succeeded on names-0",
    ]


def test_explain_tells_it_in_sentences() -> None:
    text = explain(FAILOVER)
    assert "of 3 agents that can do it and had room, two were drawn at random" in text
    assert "Attempt 1 ended without an answer (names-3 was lost: its process ended)." in text
    assert "because its last agent was lost" in text
    assert text.endswith("It succeeded after 0.00 s of waiting and 0.00 s of work.")


def test_a_task_that_nobody_started() -> None:
    text = explain(story(StoryLine(100.0, "accepted"), StoryLine(101.0, "cancelled"), state="cancelled"))
    assert "No agent ever started it." in text
    assert "It was cancelled." in text


def test_a_reason_is_not_given_for_another_attempt() -> None:
    """A crash may lose an attempt's number: then the story and the choices no longer go together."""
    for attempt in (1, 2):
        line = StoryLine(100.0, "started", attempt, "b-0", "adopted")
        gap = render.plain(story(line, choices=(Choice("only_one", 1, (("a-0", 0.0),)),)))
        assert "only agent" not in gap
        assert "found running there by a restarted coordinator" in gap


@pytest.mark.parametrize("state", [state.value for state in TaskState])
def test_every_state_of_a_task_can_be_explained(state: str) -> None:
    assert explain(story(StoryLine(100.0, "accepted"), state=state)).count("\n") >= 1


def test_a_view_that_nobody_can_draw_says_so() -> None:
    with pytest.raises(TypeError, match="no picture of View"):
        render.plain(View())


def test_units() -> None:
    assert [duration(s) for s in (None, 0.0000004, 0.0123, 1.234, 12.34, 1234.0)] == [
        *("-", "0 µs", "12.3 ms", "1.23 s", "12.3 s", "1234 s"),
    ]
    assert [size(b) for b in (0, 1023, 1536, 3 << 30, 5 << 40)] == ["0 B", "1023 B", "1.5 KiB", "3 GiB", "5 TiB"]
    assert [bar(s, 4) for s in (-1.0, 0.0, 0.5, 0.53125, 2.0)] == ["    ", "    ", "██  ", "██▏ ", "████"]
    assert printable("a\x1b[2Jb\n\tc") == "a\ufffd[2Jb\n\tc"
