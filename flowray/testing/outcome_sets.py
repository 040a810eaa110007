"""A small set of outcomes, made: for tests and trials where no recorded one is at hand.

Tasks are of six kinds, which show in their words. Agents are one generalist, passable at everything and dear, and
specialists, good at their kinds, poor at the others and cheap. So whoever reads a task and remembers who was good at
what does better than any single agent, for less. Tasks are harder or easier for all agents alike, which nobody can
read in them; seconds follow from how much an agent writes and how fast.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from flowray.errors import ConfigError

_GENERAL, _OWN, _OTHER = 0.65, 0.92, (0.2, 0.45)  # chances of success: generalist, specialist at its kind, at others
_DIFFICULTY = 0.6  # standard deviation over tasks, in log-odds
_MAX_TASKS = 10_000  # texts are all different, and the words are finite
_MAX_AGENTS = 100
_ASKING = ("", "Please ", "Could you ", "Quickly ", "For our weekly meeting ", "If you can ")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    tokens: int  # median of those written
    templates: tuple[str, ...]  # {slot} is one of `words`, {n} a number
    words: dict[str, tuple[str, ...]]


_KINDS = {
    "arithmetic": _Kind(
        tokens=60,
        templates=(
            "add {n} and {n} and divide the sum by {small}",
            "work out {percent} percent of {n} plus {n}",
            "a shop sells {n} {things} at {small} dollars each: how much money is that in total",
            "multiply {n} by {n} and subtract {n}",
            "split {n} {things} equally among {small} people: how many remain",
        ),
        words={
            "small": tuple(str(n) for n in range(2, 20)),
            "percent": tuple(str(5 * n) for n in range(1, 20)),
            "things": ("apples", "tickets", "pencils", "bottles", "coins", "chairs"),
        },
    ),
    "translation": _Kind(
        tokens=50,
        templates=(
            "translate into {language}: the {who} {did} the {what} {when}",
            "say in {language} that the {who} {did} the {what} {when}",
            "put this sentence into {language}: a {who} {did} my {what} {when}",
        ),
        words={
            "language": ("French", "German", "Spanish", "Polish", "Turkish", "Swahili", "Finnish", "Korean"),
            "who": ("teacher", "neighbour", "doctor", "fisherman", "painter", "gardener", "cousin", "driver"),
            "did": ("painted", "lost", "found", "repaired", "sold", "borrowed", "described", "washed"),
            "what": ("boat", "umbrella", "violin", "fence", "coat", "letter", "bicycle", "garden"),
            "when": ("yesterday", "last winter", "in the morning", "before lunch", "on Sunday", "too late"),
        },
    ),
    "code": _Kind(
        tokens=320,
        templates=(
            "write a {language} function that {does} a {structure} of {items}",
            "fix the bug in this {language} method: it {does} the {structure} but skips {items}",
            "add unit tests for the {language} class which {does} a {structure} of {items}",
        ),
        words={
            "language": ("Python", "Rust", "Java", "Go", "TypeScript", "Haskell"),
            "does": ("sorts", "reverses", "merges", "flattens", "traverses", "serialises", "caches", "validates"),
            "structure": ("linked list", "binary tree", "hash map", "graph", "queue", "heap", "matrix", "trie"),
            "items": ("integers", "strings", "tuples", "nodes", "null pointers", "duplicates", "timestamps", "bytes"),
        },
    ),
    "extraction": _Kind(
        tokens=90,
        templates=(
            "extract the {field} and the {other} from invoice {n} of {company}",
            "list every {field} that the attached {document} from {company} mentions on page {n}",
            "which {field} and which {other} does the {document} number {n} name",
        ),
        words={
            "field": ("email address", "phone number", "due date", "tax number", "postcode", "signature"),
            "other": ("customer name", "currency", "order id", "bank account", "surname", "street"),
            "company": ("Acme Ltd", "Northwind", "Globex", "Initech", "Umbrella Corp", "Stark Industries"),
            "document": ("contract", "receipt", "form", "application", "purchase order", "delivery note"),
        },
    ),
    "summary": _Kind(
        tokens=180,
        templates=(
            "summarise the {text} about {topic} in {few} sentences for {reader}",
            "shorten this {text} on {topic} to {few} key points for {reader}",
            "give {reader} the gist of a long {text} concerning {topic} in {few} lines",
        ),
        words={
            "text": ("article", "report", "interview", "lecture", "chapter", "press release", "essay"),
            "topic": ("climate policy", "whale migration", "chess openings", "urban transport", "vaccines",
                      "medieval trade", "solar panels", "jazz history", "volcanoes", "sleep"),
            "few": ("two", "three", "four", "five", "six", "seven"),
            "reader": ("children", "managers", "students", "investors", "journalists", "beginners"),
        },
    ),
    "planning": _Kind(
        tokens=240,
        templates=(
            "plan a {length} trip to {place} with {company} on a budget of {n} euros",
            "draw up a schedule for a {length} stay in {place}: {company}, arriving by {vehicle}",
            "suggest an itinerary from {place} by {vehicle} for {company}, {length}, hotel included",
        ),
        words={
            "length": ("two-day", "weekend", "week-long", "ten-day", "month-long"),
            "place": ("Lisbon", "Kyoto", "Oslo", "Marrakesh", "Quito", "Tallinn", "Hanoi", "Naples"),
            "company": ("two toddlers", "a large family", "old friends", "a dog", "colleagues", "grandparents"),
            "vehicle": ("train", "ferry", "bicycle", "bus", "camper van", "plane"),
        },
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Agent:
    agent_id: str
    description: str
    skill: dict[str, float]  # kind -> chance of success at a task of middling difficulty
    price_in_per_m: float  # dollars for a million tokens read
    price_out_per_m: float  # and written
    tokens_per_s: float


def make_outcomes(directory: Path | str, *, tasks: int = 600, agents: int = 6, seed: int = 0) -> Path:
    """Write a set in the schema of `models/README.md`, with every agent's outcome at every task; its directory.

    The label `task_type` is the kind of a task. Of each kind 7 tasks in 10 are in `train`, 1 in `val`, 2 in `test`.
    Equal arguments give equal sets. Files of an earlier set are replaced.

    Args:
        tasks: 60 to 10,000.
        agents: 3 to 100; the first is the generalist.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, value, low, high in (("tasks", tasks, 60, _MAX_TASKS), ("agents", agents, 3, _MAX_AGENTS)):
        if not low <= value <= high:
            raise ConfigError(name, f"wants a whole number from {low} to {high}, got {value}")
    rng = Random(f"{seed}/outcomes")
    asked = _tasks(tasks, rng)
    team = _team(agents, rng)
    outcomes = [_outcome(task, agent, rng) for task in asked for agent in team]
    for task in asked:
        del task["difficulty"]  # nobody knows it
    written = [
        {name: getattr(agent, name) for name in ("agent_id", "description", "price_in_per_m", "price_out_per_m")}
        for agent in team
    ]
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "tasks.parquet", asked)
    _write(directory / "agents.parquet", written)
    _write(directory / "outcomes.parquet", outcomes)
    return directory


def _tasks(count: int, rng: Random) -> list[dict[str, Any]]:
    kinds = [list(_KINDS)[number % len(_KINDS)] for number in range(count)]
    rng.shuffle(kinds)
    seen: dict[str, int] = dict.fromkeys(_KINDS, 0)
    texts: dict[str, None] = {}
    rows = []
    for number, kind in enumerate(kinds):
        while (text := _text(_KINDS[kind], rng)) in texts:
            pass
        texts[text] = None
        place = seen[kind] % 10
        seen[kind] += 1
        rows.append(
            {
                "prompt_id": f"made-{number:05d}",
                "text": text,
                "task_type": kind,
                "split": "train" if place < 7 else "val" if place == 7 else "test",
                "difficulty": rng.gauss(0.0, _DIFFICULTY),
            }
        )
    return rows


def _text(kind: _Kind, rng: Random) -> str:
    def word(slot: re.Match[str]) -> str:
        return str(rng.randint(20, 999)) if slot[1] == "n" else rng.choice(kind.words[slot[1]])

    return rng.choice(_ASKING) + re.sub(r"\{(\w+)\}", word, rng.choice(kind.templates))


def _team(count: int, rng: Random) -> list[_Agent]:
    kinds = list(_KINDS)
    team = [
        _Agent(
            agent_id="made/generalist",
            description="a large model that does everything passably",
            skill=dict.fromkeys(kinds, _GENERAL),
            price_in_per_m=5.0,
            price_out_per_m=15.0,
            tokens_per_s=60.0,
        )
    ]
    specialists = count - 1
    for number in range(specialists):
        # Each kind has its specialist, and each specialist a kind, however many there are of either.
        own = {
            kind for place, kind in enumerate(kinds) if place % specialists == number or number % len(kinds) == place
        }
        price = round(rng.uniform(0.1, 1.0), 2)
        team.append(
            _Agent(
                agent_id=f"made/specialist-{number + 1}",
                description=f"a small model for {' and '.join(kind for kind in kinds if kind in own)}",
                skill={kind: _OWN if kind in own else rng.uniform(*_OTHER) for kind in kinds},
                price_in_per_m=price,
                price_out_per_m=round(3 * price, 2),
                tokens_per_s=rng.uniform(80.0, 240.0),
            )
        )
    return team


def _outcome(task: dict[str, Any], agent: _Agent, rng: Random) -> dict[str, Any]:
    kind = _KINDS[task["task_type"]]
    skill = agent.skill[task["task_type"]]
    success = rng.random() < 1.0 / (1.0 + math.exp(task["difficulty"]) * (1.0 - skill) / skill)
    read = 20 + round(1.3 * len(task["text"].split()))
    wrote = max(1, round(kind.tokens * rng.lognormvariate(0.0, 0.3)))
    return {
        "prompt_id": task["prompt_id"],
        "agent_id": agent.agent_id,
        "success": int(success),
        "score": round(rng.uniform(0.7, 1.0) if success else rng.uniform(0.0, 0.45), 3),
        "latency_s": round((0.1 + wrote / agent.tokens_per_s) * rng.lognormvariate(0.0, 0.2), 4),
        "cost_usd": (read * agent.price_in_per_m + wrote * agent.price_out_per_m) / 1e6,
        "input_tokens": read,
        "output_tokens": wrote,
        "split": task["split"],
    }


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), file)
