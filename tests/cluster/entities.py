"""The outside checker's view of agents with a state: has each entity every acknowledged input, once and in order?

It goes by the same histories as `checker`, in which keys are `entity/number` and numbers count from 0 as the client
handed them in, one after the other. Besides, at the end, what the state itself says it has applied:

    {"at": 9.0, "client": "c", "op": 9, "type": "ok", "f": "state", "entity": "e1", "applied": [0, 1, 2]}

and each outcome has the place that its input took (`position`, from 1), as whoever applied it said.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from checker import Record, Verdict, check


def check_entities(history: Sequence[Record]) -> Verdict:
    """Judge a history with states: what `check` says of its tasks, and what became of each entity's inputs."""
    verdict = check([record for record in history if record["f"] != "state"])
    acknowledged: dict[str, set[int]] = defaultdict(set)
    begun: dict[str, set[int]] = defaultdict(set)
    applied: dict[str, list[int]] = {}
    positions: dict[str, dict[int, int]] = defaultdict(dict)  # entity -> number -> place that its outcome names
    for record in history:
        if record["f"] == "state" and record["type"] == "ok":
            applied[str(record["entity"])] = list(record["applied"])
        elif record["f"] == "submit":
            entity, number = _named(record["key"])
            if record["type"] == "invoke":
                begun[entity].add(number)
            elif record["type"] == "ok":
                acknowledged[entity].add(number)
        elif record["type"] == "ok" and record["outcome"]["state"] == "succeeded":
            entity, number = _named(record["outcome"]["value"]["of"])
            positions[entity][number] = record["outcome"]["value"]["position"]
    for entity in sorted(begun):
        if entity not in applied:
            verdict.lost.append(f"{entity}: nobody could say what its state is")
            continue
        _judge(verdict, entity, applied[entity], acknowledged[entity], begun[entity], positions[entity])
    return verdict


def _judge(
    verdict: Verdict,
    entity: str,
    applied: list[int],
    acknowledged: set[int],
    begun: set[int],
    positions: dict[int, int],
) -> None:
    times = Counter(applied)
    verdict.lost += [
        f"{entity}: input {number} was acknowledged, its state lacks it" for number in _missing(acknowledged, times)
    ]
    verdict.twice += [
        f"{entity}: input {number} was applied {count} times" for number, count in times.items() if count > 1
    ]
    verdict.impossible += [
        f"{entity}: input {number} was applied, nobody gave it" for number in times if number not in begun
    ]
    earlier = -1
    for number in dict.fromkeys(applied):
        if number < earlier:
            verdict.disordered.append(f"{entity}: input {number} was applied after input {earlier}")
        earlier = max(earlier, number)
    places = {number: place for place, number in enumerate(applied, 1)}
    for number, place in positions.items():
        if number in places and places[number] != place:
            verdict.twice.append(
                f"{entity}: input {number} was said to be the {place}th, and is the {places[number]}th"
            )


def _missing(acknowledged: set[int], times: Counter[int]) -> list[int]:
    return sorted(number for number in acknowledged if number not in times)


def _named(key: str) -> tuple[str, int]:
    entity, _, number = str(key).rpartition("/")
    return entity, int(number)
