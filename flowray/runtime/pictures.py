"""What is to be seen of a view: a few blocks of lines and tables, before anyone decides how to draw them.

Terminals, notebooks and pipes draw the same blocks, so the three cannot tell different things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flowray.core.model import RouterRecord
from flowray.runtime.sentences import timeline
from flowray.runtime.views import (
    AgentsView,
    AgentView,
    DeadLetter,
    DeadLetters,
    NodeView,
    RouterVersions,
    Status,
    Story,
    View,
)

TIER_ORDER = ("orchestrator", "primary", "secondary", "specialist")
TONES = ("plain", "good", "busy", "bad", "faint", "strong")  # what a drawer must know how to colour
_AGENT_TONES = {"ready": "good", "starting": "busy", "draining": "busy", "waiting": "faint", "stopped": "faint"}
_TASK_TONES = {"succeeded": "good", "running": "busy", "dead": "bad", "expired": "bad", "cancelled": "faint"}
_ARROW_TONES = {"promoted": "good", "settled": "good", "rejected": "bad", "rolled_back": "bad", "noted": "faint"}
_LINE_TONES = {**_TASK_TONES, "accepted": "faint", "started": "plain"}
_LINE_TONES |= {"attempt_failed": "bad", "requeued": "bad", "outlived": "bad"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of text, how it is meant, and a share to draw as a bar (0..1; None for no bar)."""

    text: str
    tone: str = "plain"
    bar: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of cells."""

    cells: tuple[Cell, ...]


Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in sections, each under its title ("" for none), with columns that line up over all sections."""

    columns: tuple[str, ...]
    sections: tuple[tuple[str, tuple[Row, ...]], ...]
    right: frozenset[str] = frozenset()  # columns of numbers
    flexible: frozenset[str] = frozenset()  # columns that give way where there is no room; the others stay whole
    header: bool = True

    def rows(self) -> Iterator[Row]:
        """All rows, whatever their section."""
        return (row for _, rows in self.sections for row in rows)


Block = Line | Table
Picture = tuple[Block, ...]


def picture(view: View) -> Picture:
    """The blocks of a view. Raises TypeError for a view nobody taught it to draw."""
    match view:
        case AgentView():
            return _agents([view])
        case AgentsView(agents=agents):
            return _agents(agents)
        case NodeView():
            return (_nodes([view]),)
        case Status():
            return _status(view)
        case Story():
            return _story(view)
        case DeadLetter():
            return _dead_letter(view)
        case DeadLetters(letters=letters):
            return _dead_letters(letters)
        case RouterVersions(records=records):
            return _versions(records)
    raise TypeError(f"no picture of {type(view).__name__}")


def by_tier(agents: Iterable[AgentView]) -> dict[str, list[AgentView]]:
    """Agents by tier: the default tiers in their order, then others by name; agents by class and number."""
    tiers: dict[str, list[AgentView]] = {}
    for agent in agents:
        tiers.setdefault(agent.tier, []).append(agent)
    order = sorted(tiers, key=lambda t: (TIER_ORDER.index(t) if t in TIER_ORDER else len(TIER_ORDER), t))
    return {tier: sorted(tiers[tier], key=_place) for tier in order}


def _place(agent: AgentView) -> tuple[str, int, str]:
    number = agent.agent_id.rpartition("-")[2]
    return agent.name, int(number) if number.isdigit() else 0, agent.agent_id


def tier_line(agents: Sequence[AgentView]) -> str:
    """As in "16 agents, 14 busy, 2 idle, 1 starting": what is zero is left out, but for idle."""
    ready = [a for a in agents if a.state == "ready"]
    busy = sum(a.held > 0 for a in ready)
    parts = [f"{len(agents)} agent{'' if len(agents) == 1 else 's'}"]
    parts += [f"{busy} busy"] if busy else []
    parts += [f"{len(ready) - busy} idle"]
    parts += [f"{n} {state}" for state, n in sorted(Counter(a.state for a in agents if a.state != "ready").items())]
    return ", ".join(parts)


def duration(seconds: float | None) -> str:
    """A duration in the unit that suits it; "-" for none."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def _agents(agents: Sequence[AgentView]) -> Picture:
    if not agents:
        return (Line((Cell("no agents", "faint"),)),)
    nodes = len({a.node for a in agents if a.node}) > 1
    columns = ["agent", "state", "load", "done", "average", "restarts", "pid", *(["node"] if nodes else []), "can"]
    sections = tuple(
        (f"{tier}: {tier_line(members)}", tuple(_agent_row(agent, nodes) for agent in members))
        for tier, members in by_tier(agents).items()
    )
    right = frozenset({"done", "average", "restarts", "pid"})
    failures = dict.fromkeys(f"{a.name}: {a.failure.strip()}" for a in agents if a.failure)
    return (
        Table(tuple(columns), sections, right, frozenset({"can"})),
        *(Line((Cell("does not start", "bad"), Cell(failure))) for failure in failures),
    )


def _agent_row(agent: AgentView, nodes: bool) -> tuple[Cell, ...]:
    busy = agent.state == "ready" and agent.held > 0
    state = Cell("busy" if busy else agent.state, "busy" if busy else _AGENT_TONES.get(agent.state, "bad"))
    restarts = max(0, agent.incarnation - 1)
    row: list[Cell] = [
        Cell(agent.agent_id, "strong"),
        state,
        Cell(f"{agent.held}/{agent.slots}", bar=min(1.0, agent.held / max(1, agent.slots))),
        Cell(str(agent.resolved)),
        Cell(duration(agent.service_s), "plain" if agent.service_s is not None else "faint"),
        Cell(str(restarts) if restarts else "-", "bad" if restarts else "faint"),
        Cell(str(agent.pid) if agent.pid else "-", "faint"),
    ]
    if nodes:
        row.append(Cell(agent.node or "-", "faint"))
    row.append(Cell(", ".join(agent.capabilities) or "anything", "faint"))
    return tuple(row)


def _nodes(nodes: Sequence[NodeView]) -> Table:
    rows = tuple(
        (
            Cell(node.address, "strong"),
            _state_of(node),
            Cell(f"{node.cpus:g}"),
            Cell(size(node.memory_bytes)),
            Cell(", ".join(f"{k}={v}" for k, v in _own_labels(node)) or "-", "faint"),
        )
        for node in nodes
    )
    columns = ("node", "state", "CPUs", "memory", "labels")
    return Table(columns, (("nodes", rows),), frozenset({"CPUs", "memory"}), frozenset({"labels"}))


def _state_of(node: NodeView) -> Cell:
    if node.drained and node.alive:
        return Cell("drained", "busy")
    return Cell("alive" if node.alive else "dead", "good" if node.alive else "bad")


def _own_labels(node: NodeView) -> list[tuple[str, str]]:
    """Labels that people gave; Ray adds the node's id, which says nothing to them."""
    return [(name, value) for name, value in sorted(node.labels.items()) if name != "ray.io/node-id"]


def _status(status: Status) -> Picture:
    addresses = {node.node_id: node.address for node in status.nodes}
    place = addresses.get(status.node, status.node)
    at = f"coordinator pid {status.pid}" + (f" on {place}" if place else "")
    head = [Cell(status.name, "strong"), Cell(f"epoch {status.epoch}"), Cell(at, "faint"), Cell(status.at_utc, "faint")]
    open_tasks = [Cell("tasks", "faint"), Cell(f"{status.queued} queued"), Cell(f"{status.running} running", "busy")]
    if status.backing_off:
        open_tasks.append(Cell(f"{status.backing_off} backing off", "busy"))
    open_tasks.append(Cell(f"{size(status.open_bytes)} held", "faint"))
    ended = [Cell(f"{n} {state}", _TASK_TONES.get(state, "plain")) for state, n in sorted(status.ended.items())]
    blocks: list[Block] = [Line(tuple(head)), Line(tuple(open_tasks))]
    blocks.append(Line((Cell("ended", "faint"), *(ended or [Cell("none yet", "faint")]))))
    blocks.append(Line((Cell("journal", "faint"), Cell(status.journal or "goes with this run"))))
    if status.ray_failed:
        blocks.append(Line((Cell("Ray's control store", "bad"), Cell(status.ray_failed))))
    if status.journal_failed:
        blocks.append(Line((Cell("journal failed", "bad"), Cell(status.journal_failed))))
    if status.router:
        blocks.append(Line((Cell("router", "faint"), Cell(status.router))))
    if status.router_trial:
        blocks.append(Line((Cell("on trial", "faint"), Cell(status.router_trial))))
    if status.router_failed:
        blocks.append(Line((Cell("no router", "bad"), Cell(status.router_failed))))
    waiting = sorted(status.blocks.items())
    blocks += [Line((Cell(f"block {name}", "faint"), Cell(state, "bad"))) for name, state in waiting]
    blocks += _agents(status.agents)
    if status.nodes:
        blocks.append(_nodes(status.nodes))
    return tuple(blocks)


def _versions(records: Sequence[RouterRecord]) -> Picture:
    if not records:
        return (Line((Cell("nothing was decided about the router", "faint"),)),)
    rows = tuple(
        (
            Cell(datetime.fromtimestamp(one.at, UTC).isoformat(" ", "seconds"), "faint"),
            Cell(one.arrow, _ARROW_TONES.get(one.arrow, "plain")),
            Cell(one.live.version, "strong"),
            Cell(f"{one.stage.value} {one.other.version}" if one.other is not None else "", "busy"),
            Cell(one.why),
        )
        for one in records
    )
    columns = ("at (UTC)", "what", "in force", "beside it", "why")
    return (Table(columns, (("", rows),), flexible=frozenset({"why"})),)


def _story(story: Story) -> Picture:
    head = Line(
        (
            Cell(story.task_id, "strong"),
            Cell(story.state, _TASK_TONES.get(story.state, "plain")),
            Cell(f"waited {duration(story.queue_s)}, ran {duration(story.run_s)}", "faint"),
            Cell(f"accepted {story.accepted_at_utc}", "faint"),
        )
    )
    return head, _timeline(story)


def _timeline(story: Story) -> Table:
    rows = tuple((Cell(at, "faint"), Cell(text, _LINE_TONES.get(what, "plain"))) for at, what, text in timeline(story))
    return Table(("time", "event"), (("", rows),), frozenset({"time"}), frozenset({"event"}), header=False)


def _dead_letters(letters: Sequence[DeadLetter]) -> Picture:
    if not letters:
        return (Line((Cell("no dead letters", "good"),)),)
    rows = tuple(
        (
            Cell(letter.task.id, "strong"),
            Cell(letter.outcome.failure.kind if letter.outcome.failure else "-", "bad"),
            Cell(str(letter.outcome.attempts)),
            Cell(letter.outcome.agent_id or "-", "faint"),
            Cell(_short(_said(letter), 90)),
            Cell(_short(letter.task.prompt, 40) or "-", "faint"),
        )
        for letter in letters
    )
    columns = ("task", "kind", "attempts", "last agent", "failure", "prompt")
    title = f"dead letters: the newest {len(letters)}" if len(letters) > 1 else "dead letters"
    return (Table(columns, ((title, rows),), frozenset({"attempts"}), frozenset({"failure", "prompt"})),)


def _dead_letter(letter: DeadLetter) -> Picture:
    task, outcome = letter.task, letter.outcome
    facts = [
        ("prompt", task.prompt or "-"),
        ("needs", ", ".join(task.needs) or "anything"),
        ("key", task.key or "-"),
        ("attempts", f"{outcome.attempts} of at most {task.max_attempts} that may fail"),
        ("last agent", outcome.agent_id or "-"),
        ("failure", _said(letter)),
    ]
    blocks: list[Block] = [Line((Cell(task.id, "strong"), Cell("dead letter", "bad")))]
    blocks += [Line((Cell(name, "faint"), Cell(text))) for name, text in facts]
    if outcome.failure is not None and outcome.failure.traceback:
        blocks.append(Line((Cell("in the agent", "faint"), Cell(outcome.failure.traceback.rstrip(), "faint"))))
    story = Story(
        task_id=task.id,
        state=outcome.state.value,
        accepted_at_utc="",
        lines=outcome.story,
        choices=outcome.choices,
        accepted_at=outcome.accepted_at,
    )
    return (*blocks, _timeline(story))


def _said(letter: DeadLetter) -> str:
    failure = letter.outcome.failure
    return "-" if failure is None else ": ".join(part for part in (failure.type, failure.message) if part) or "-"


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
