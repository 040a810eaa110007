"""A failing seed made small, for a person to read: the fewest faults, tasks and agents that still fail, and how.

First everything that was to happen after the violation is cut off; that changes nothing before it. Then options are
taken away, larger parts first, as long as what is left breaks the same invariant (delta debugging: Zeller and
Hildebrandt, 2002). A smaller world draws other random numbers, so each is tried with a few seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from msgspec import Struct, structs

from flowray.core.model import AgentSpec, Task
from flowray.core.policy import CorePolicy
from flowray.testing.callers import Plan
from flowray.testing.drawing import Options
from flowray.testing.special import draw_options
from flowray.testing.swarm import SeedReport, run_options

T = TypeVar("T")
MOST_RUNS = 300  # worlds tried
SEEDS = 2  # for each smaller world
SHOWN = 60  # lines of a trace; a longer one is shown in part


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """A failing world, as small as it could be made."""

    original: Options
    options: Options
    report: SeedReport  # of the small one, with its trace
    runs: int

    def describe(self) -> str:
        """What is left, what happened, and what broke."""
        before, after = _size(self.original), _size(self.options)
        sizes = ", ".join(f"{count} of {before[name]} {name}" for name, count in after.items())
        lines: Sequence[str] = self.report.lines
        if len(lines) > SHOWN:
            lines = _relevant(lines, self.report.violation)
        return "\n".join(
            (
                f"seed {self.original.seed}, made smaller in {self.runs} runs: {sizes}; "
                f"{self.report.events} events until it breaks, at {self.report.virtual_s:.3f} s",
                _short(self.options),
                "what happened:",
                *(f"  {line}" for line in lines),
                self.report.violation.strip().splitlines()[-1],
            )
        )


def shrink(seed: int, *, most_runs: int = MOST_RUNS) -> Shrunk | None:
    """Make a failing seed small. None when it does not fail."""
    original = draw_options(seed)
    search = _Search(original, most_runs)
    if search.report.violation:
        search.run()
        return Shrunk(
            original=original,
            options=search.options,
            report=search.told(),
            runs=search.runs,
        )
    return None


class _Search:
    """The smallest failing world so far."""

    def __init__(self, options: Options, most_runs: int) -> None:
        self.options = options
        self.runs = 1
        self._most_runs = most_runs
        self.report = run_options(options)

    def told(self) -> SeedReport:
        """The small world once more, with its trace, and the core looked at after each event if that finds it too."""
        report = run_options(self.options, trace=True, thorough=True)
        return report if self._still(report) else run_options(self.options, trace=True)

    def run(self) -> None:
        """Take away what can be taken away, until nothing more can."""
        size = None
        while size != (size := (_size(self.options), self.options.policy)) and self.runs < self._most_runs:
            self._cut()
            for field in ("faults", "plans", "rescales"):
                self._fewer(field)
                self._cut()
            for simpler in _SIMPLER:
                self._try(replace(self.options, plans=tuple(map(simpler, self.options.plans))))
            self._smaller_team()
            self._plainer_policy()

    def _still(self, report: SeedReport) -> bool:
        return bool(report.violation) and report.invariant == self.report.invariant

    def _try(self, options: Options) -> bool:
        """Keep this world if it breaks the same invariant, with its own seed or one of the next."""
        if options == self.options:
            return False
        for seed in range(options.seed, options.seed + SEEDS):
            if self.runs >= self._most_runs:
                return False
            self.runs += 1
            one = replace(options, seed=seed)
            report = run_options(one)
            if self._still(report):
                self.options, self.report = one, report
                return True
        return False

    def _cut(self) -> None:
        """Nothing that begins after the violation had a part in it; what ends with no violation is made shorter."""
        options, at_s = self.options, self.report.virtual_s
        if at_s < options.safety_s:
            plans = tuple(plan for plan in options.plans if plan.at_s <= at_s)
            rescales = tuple(change for change in options.rescales if change[0] <= at_s)
            self._try(replace(options, plans=plans, rescales=rescales, safety_s=at_s + 1e-3))
            return
        for part in (0.1, 0.3, 0.6, 0.9):
            safety_s = max(1.0, options.safety_s * part)
            plans = tuple(replace(plan, at_s=min(plan.at_s, 0.8 * safety_s)) for plan in options.plans)
            if safety_s < options.safety_s and self._try(replace(options, plans=plans, safety_s=safety_s)):
                return

    def _fewer(self, field: str) -> None:
        """Without as many members of this field as possible."""
        size = max(1, len(getattr(self.options, field)) // 2)
        while True:
            start = 0
            while start < len(members := getattr(self.options, field)):
                left = members[:start] + members[start + size :]
                if not self._try(replace(self.options, **{field: left})):
                    start += size
            if size == 1:
                return
            size //= 2

    def _smaller_team(self) -> None:
        for number in range(len(self.options.specs) - 1, -1, -1):
            others = self.options.specs[:number] + self.options.specs[number + 1 :]
            plain = tuple(change for change in self.options.rescales if change[1] != self.options.specs[number])
            if others and self._try(replace(self.options, specs=others, rescales=plain)):
                continue
            for field in ("count", "slots"):
                for count in (1, 2, getattr(self.options.specs[number], field) // 2):
                    if 0 < count < getattr(self.options.specs[number], field):
                        spec: AgentSpec = structs.replace(self.options.specs[number], **{field: count})
                        specs = (*self.options.specs[:number], spec, *self.options.specs[number + 1 :])
                        if self._try(replace(self.options, specs=specs)):
                            break

    def _plainer_policy(self) -> None:
        for path, value in list(_differences(self.options.policy)):
            self._try(replace(self.options, policy=_with(self.options.policy, path, value)))


# ── simpler tasks ────────────────────────────────────────────────────────────────────────────────────────────────


def _plain_task(**fields: Any) -> Callable[[Plan], Plan]:
    def simpler(plan: Plan) -> Plan:
        task: Task = structs.replace(plan.task, **fields)
        return replace(plan, task=task)

    return simpler


_SIMPLER: Sequence[Callable[[Plan], Plan]] = (
    lambda plan: replace(plan, cancel_after_s=None),
    lambda plan: replace(plan, twice=False),
    lambda plan: replace(plan, again_after_s=None, again_as=""),
    _plain_task(key="", fingerprint=""),
    _plain_task(deadline_s=None),
    _plain_task(attempt_timeout_s=None),
    _plain_task(priority=0),
    _plain_task(agent="", tier=""),
    _plain_task(needs=()),
    _plain_task(labels={}),
)


# ── policies ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _differences(policy: Struct, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(where, default) of every field that is not as usual."""
    usual = type(policy)()
    for name in policy.__struct_fields__:
        value, default = getattr(policy, name), getattr(usual, name)
        if isinstance(value, Struct):
            yield from _differences(value, (*path, name))
        elif value != default:
            yield (*path, name), default


def _with(policy: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    return structs.replace(policy, **{name: _with(getattr(policy, name), tuple(rest), value) if rest else value})


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────


def _size(options: Options) -> dict[str, int]:
    return {
        "faults": len(options.faults),
        "tasks": len(options.plans),
        "rescales": len(options.rescales),
        "agents": sum(spec.count for spec in options.specs),
    }


def _short(options: Options) -> str:
    described = options.describe().split("  policy:")[0].rstrip()
    unusual = [f"{'.'.join(path)}={_at(options.policy, path)}" for path, _ in _differences(options.policy)]
    tasks = [f"    {plan.at_s:.3f} s: {_said(plan)}" for plan in options.plans[:10]]
    return "\n".join((described, "  tasks:", *tasks, f"  policy: {', '.join(unusual) or 'as usual'}"))


def _said(plan: Plan) -> str:
    usual = Task(id=plan.task.id)
    fields = [f for f in plan.task.__struct_fields__ if getattr(plan.task, f) != getattr(usual, f)]
    said = [plan.task.id, *(f"{field}={getattr(plan.task, field)!r}" for field in fields if field != "id")]
    if plan.cancel_after_s is not None:
        said.append(f"cancelled after {plan.cancel_after_s:.3f} s")
    if plan.twice:
        said.append("submitted twice at once")
    return " ".join(said)


def _at(policy: CorePolicy, path: tuple[str, ...]) -> Any:
    value: Any = policy
    for name in path:
        value = getattr(value, name)
    return value


def _relevant(lines: Sequence[str], violation: str) -> list[str]:
    """The lines that name what the violation names, and the last ones, with what is left out between."""
    names = {word.strip("':,()[]#") for word in violation.strip().splitlines()[-1].replace("#", " ").split()}
    named = {name for name in names if name[:1].isalpha() and any(letter.isdigit() for letter in name)}
    shown, left_out = [], 0
    for number, line in enumerate(lines):
        if number >= len(lines) - SHOWN // 3 or any(name in line.split() for name in named):
            shown += [f"... {left_out} lines"] if left_out else []
            shown.append(line)
            left_out = 0
        else:
            left_out += 1
    return shown[-2 * SHOWN :]
