"""A task's story in plain words: one sentence for each of its lines, and why each of its agents was chosen."""

from __future__ import annotations

from collections.abc import Iterator

from flowray.core.model import Choice, Estimate, Grade, Receipt, StoryLine
from flowray.runtime.views import Story

_REASONS = {
    "first": "",
    "retry": "another try",
    "failover": "its last agent was lost or gave it back",
    "adopted": "found running there by a restarted coordinator",
    "hedge": "beside an attempt that takes longer than expected",
    "copy": "at the same time as another attempt",
}
_PLAIN = {
    "attempt_failed": "attempt {attempt} failed on {agent}",
    "requeued": "attempt {attempt} was lost with {agent}; waiting again",
    "outlived": "attempt {attempt} was lost with {agent}; the other one goes on",
    "restarted": "attempt {attempt} on {agent} gives other chunks than the one before",
    "logged": "has its number at {agent}",
    "promoted": "{agent} took over",
    "succeeded": "succeeded on {agent}",
    "dead": "gave up: a dead letter",
    "cancelled": "cancelled",
    "expired": "expired: its deadline passed",
}
_UNROUTED = {
    "late": "the router did not answer in time",
    "failed": "the router had no answer",
    "not_worth": "the router was not asked: lately its answers took such tasks longer than they brought",
    "recovered": "the coordinator restarted before the router was asked",
}
_ENDED = {
    "succeeded": "It succeeded",
    "dead": "It failed for good and is kept as a dead letter",
    "cancelled": "It was cancelled",
    "expired": "Its deadline passed before it was done",
    "queued": "It is waiting for an agent",
    "running": "It is running",
    "backing_off": "It waits a moment before the next attempt",
}


def choice_of(story: Story, line: StoryLine) -> Choice | None:
    """The choice that led to a "started" line.

    Choices are kept in the order of the attempts; a line whose agent is not among those compared belongs to a story
    with gaps (a crash lost a number), and then saying nothing is better than giving another attempt's reason.
    """
    if line.what != "started" or not 1 <= line.attempt <= len(story.choices):
        return None
    choice = story.choices[line.attempt - 1]
    return choice if any(agent == line.agent_id for agent, _ in choice.considered) else None


def why(choice: Choice, agent_id: str) -> str:
    """Why this agent, in a few words."""
    if choice.policy == "fallback":
        return "the task's fallback"
    if choice.receipt is not None:
        return _routed_briefly(choice.receipt)
    said = _why(choice, agent_id)
    return f"{said}; {_UNROUTED[choice.unrouted]}" if choice.unrouted in _UNROUTED else said


def _why(choice: Choice, agent_id: str) -> str:
    loads = dict(choice.considered)
    mine = loads.get(agent_id)
    others = [(agent, load) for agent, load in choice.considered if agent != agent_id]
    among = f"{choice.candidates} candidates"
    if choice.policy == "only_one":
        return "the only agent with room"
    if choice.policy in ("hedge", "copy"):
        return "it had nothing to do"
    if choice.policy == "next_free":
        return "the first agent to get free"
    if choice.policy == "adopted":
        return "found running there by a restarted coordinator"
    if choice.policy == "power_of_two" and others and mine is not None:
        return f"power of two choices: load {mine:.1f} against {others[0][1]:.1f}, {among}"
    if choice.policy == "same":
        return "idle, and it had just done such a task"
    if choice.policy == "batch":
        return "with the task before it, in one message: its tasks are short"
    if choice.policy == "recent":
        return f"one of {choice.candidates} that do such short tasks just now"
    if choice.policy == "prefetch":
        return f"sent ahead of time: its tasks are short, {among}"
    return f"{choice.policy}, {among}"


def sentence(story: Story, line: StoryLine) -> str:
    """One line of the story."""
    if line.what == "accepted":
        return f"accepted ({line.detail})" if line.detail else "accepted"
    if line.what == "started":
        choice = choice_of(story, line)
        reasons = [_REASONS.get(line.detail, line.detail), why(choice, line.agent_id) if choice else ""]
        said = list(dict.fromkeys(reason for reason in reasons if reason))
        return f"started on {line.agent_id}" + (f" ({'; '.join(said)})" if said else "")
    form = _PLAIN.get(line.what, line.what.replace("_", " "))
    if not line.agent_id and line.what in ("succeeded", "requeued", "outlived", "attempt_failed"):
        form = form.replace(" on {agent}", "").replace(" with {agent}", "")
    text = form.format(attempt=line.attempt, agent=line.agent_id)
    return f"{text}: {line.detail}" if line.detail else text


def timeline(story: Story) -> Iterator[tuple[str, str, str]]:
    """(time since acceptance, what in one word, sentence) for each line."""
    start = story.accepted_at or (story.lines[0].at if story.lines else 0.0)
    for line in story.lines:
        yield f"+{max(0.0, line.at - start):.2f} s", line.what, sentence(story, line)
    if story.grade is not None:
        yield f"+{max(0.0, story.grade.at - start):.2f} s", "graded", graded(story.grade)


def graded(grade: Grade) -> str:
    """What somebody said of the answer."""
    return f"graded {grade.quality:.3g}" + (f" by {grade.by}" if grade.by else "")


def explain(story: Story) -> str:
    """What happened to a task and why these agents, as a paragraph that needs no knowledge of flowray."""
    text = [f"Task {story.task_id} was accepted at {story.accepted_at_utc}."]
    for line in story.lines:
        if line.what == "started":
            text.append(_started(story, line))
        elif line.what in ("attempt_failed", "requeued", "outlived"):
            ended = "failed" if line.what == "attempt_failed" else "ended without an answer"
            text.append(f"Attempt {line.attempt} {ended}" + (f" ({line.detail})." if line.detail else "."))
    if not any(line.what == "started" for line in story.lines):
        text.append("No agent ever started it.")
    last = story.lines[-1] if story.lines else None
    detail = f" ({last.detail})" if last is not None and last.detail and last.what == story.state else ""
    took = ""
    if story.state == "succeeded":
        took = f" after {story.queue_s:.2f} s of waiting and {story.run_s:.2f} s of work"
    text.append(f"{_ENDED.get(story.state, f'It is {story.state}')}{took}{detail}.")
    if story.grade is not None:
        text.append(f"Its answer was {graded(story.grade)}, of at most 1.")
    return "\n".join(text)


def _started(story: Story, line: StoryLine) -> str:
    choice = choice_of(story, line)
    again = {
        "retry": ", as another try",
        "failover": ", because its last agent was lost or gave it back",
        "hedge": " as well, because the one before it took longer than expected",
        "copy": " as well, at the same time, because it was not sure who can do it",
    }
    text = f"Attempt {line.attempt} went to {line.agent_id}{again.get(line.detail, '')}"
    if choice is None:
        return f"{text}."
    if choice.policy == "fallback":
        return f"{text}: it is the task's fallback, and nobody else was expected to do it, or all others had failed."
    if choice.receipt is not None:
        return f"{text}: {_routed(choice)}"
    said = _placed(text, choice, line)
    if choice.unrouted not in _UNROUTED:
        return said
    detail = f": {choice.detail}" if choice.detail else ""
    return f"{said[:-1]} ({_UNROUTED[choice.unrouted]}{detail})."


def _routed_briefly(receipt: Receipt) -> str:
    mine = next(estimate for estimate in receipt.estimates if estimate.candidate == receipt.chosen)
    chance = ", to learn of it" if receipt.explored else ""
    return f"estimated to succeed at {mine.success:.0%}, {len(receipt.estimates)} candidates{chance}"


def _routed(choice: Choice) -> str:
    """Why a router's estimates led here: what was expected of this class of agents, and of the others."""
    receipt = choice.receipt
    assert receipt is not None
    expected = {estimate.candidate: estimate for estimate in receipt.estimates}
    said = [f"{_expected(expected[receipt.chosen])}"]
    others = sorted(
        (each for each in zip(receipt.values, receipt.estimates, strict=True) if each[1].candidate != receipt.chosen),
        key=lambda each: -each[0],
    )
    if others:
        best = " and ".join(f"{estimate.candidate} ({_expected(estimate)})" for _, estimate in others[:2])
        more = f", and {len(others) - 2} more" if len(others) > 2 else ""
        said.append(f"the best other candidates were {best}{more}")
    if choice.policy in ("hedge", "copy"):
        said.append("it had a free slot at that moment, and whoever answers first counts")
    elif choice.policy == "taken_over":
        said.append("it waited for another class, and by then an idle agent of this one was worth as much")
    elif receipt.explored:
        said.append("it was not among the best by value and was tried to learn of it")
    elif receipt.wait_s > 0:
        said.append(f"a wait of about {receipt.wait_s:.2g} s was expected")
    path = f"{receipt.path} ({receipt.detail})" if receipt.detail else receipt.path
    said.append(
        f"the router was {receipt.confidence:.0%} sure that nobody is better "
        f"(answered in {1000 * receipt.took_s:.1f} ms, {path}, version {receipt.version})"
    )
    return "; ".join(said) + "."


def _expected(estimate: Estimate) -> str:
    parts = [f"{estimate.success:.0%} expected to succeed"]
    if abs(estimate.related) >= 0.005:
        parts[0] += f" ({100 * estimate.related:+.0f} points by whose answer it goes on from)"
    if estimate.latency_s is not None:
        parts.append(f"{estimate.latency_s:.2g} s")
    if estimate.cost_usd is not None:
        parts.append(f"${estimate.cost_usd:.2g}" if estimate.cost_usd >= 0.001 else f"${estimate.cost_usd:.6f}")
    return ", ".join(parts)


def _placed(text: str, choice: Choice, line: StoryLine) -> str:
    loads = dict(choice.considered)
    if choice.policy == "hedge":
        return f"{text}: it had a free slot at that moment, and whoever answers first counts."
    if choice.policy == "only_one":
        return f"{text}: no other agent that can do it had room."
    if choice.policy == "next_free":
        return f"{text}: no agent that can do it had room when it came, and this one had some first."
    if choice.policy == "adopted":
        return f"{text}: a restarted coordinator found it running there and left it."
    others = [(agent, load) for agent, load in choice.considered if agent != line.agent_id]
    if choice.policy == "same":
        return f"{text}: it had nothing to do and had just done such a task, so it was the quickest to reach."
    if choice.policy == "batch":
        return f"{text}: it had just been given such a task, and they are so short that they share a message."
    if choice.policy == "recent":
        return f"{text}: such tasks are so short that a few agents do them all, and of these it was not the busier one."
    if choice.policy == "prefetch":
        return f"{text}: all were busy, but its tasks are so short that it may hold some ahead of time."
    if choice.policy == "power_of_two" and others:
        return (
            f"{text}: of {choice.candidates} agents that can do it and had room, two were drawn at random and the less "
            f"busy one taken (load {loads[line.agent_id]:.1f} against {others[0][1]:.1f} of {others[0][0]})."
        )
    return f"{text}: {choice.policy}, {choice.candidates} candidates."
