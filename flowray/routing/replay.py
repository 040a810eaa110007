"""What would have changed, had another policy chosen: for people as lines of text, for programs as one document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flowray.routing import offpolicy
from flowray.routing.decisions import Decisions, Numbers
from flowray.routing.estimates import Estimates
from flowray.routing.offpolicy import ESTIMATORS, Evaluation, Figure, OffPolicyConfig
from flowray.routing.policies import Policy

EXAMPLES = 10
_SHOWN_OF_PROMPT = 48  # characters
_ROWS = {"reward": ("reward", ".3f"), "cost_usd": ("dollars", ".3g"), "run_s": ("seconds", ".3g")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One decision that would have been another."""

    task_id: str
    attempt: int
    prompt: str  # "" where not known
    chosen: str
    instead: str  # what the other policy would most likely choose
    success: tuple[float, float]  # estimated, of the chosen one and of the other
    cost_usd: tuple[float, float]  # estimated, NaN where not known
    reward: float  # what the chosen one earned, NaN where not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One policy held against the one in force."""

    policy: str
    versions: tuple[str, ...]  # of the routers in force
    differing_share: float  # 0..1 of the decisions, expected where the policy leaves something to chance
    evaluation: Evaluation
    examples: tuple[Example, ...]  # spread evenly over the time of the receipts
    without_text: int = 0  # receipts left out: another router cannot read what nobody kept
    without_waits: int = 0  # receipts left out: they do not say how long candidates would have waited


def replay(
    decisions: Decisions,
    policy: Policy,
    name: str,
    *,
    estimates: Estimates | None = None,
    config: OffPolicyConfig | None = None,
) -> Replay:
    """Hold a policy against the one in force; `name` is what it is called.

    `estimates` [rows, candidates] are what it chooses by, and the direct model of DR: by default the recorded ones,
    else those of another router for the same tasks, columns in the order of `decisions.candidates`.

    Raises:
        ConfigError: the policy cannot choose among these candidates.
    """
    estimates = decisions.estimates if estimates is None else estimates
    probabilities = policy(decisions, estimates)
    return Replay(
        policy=name,
        versions=tuple(sorted(set(decisions.versions))),
        differing_share=float(1.0 - decisions.of_chosen(probabilities).mean()),
        evaluation=offpolicy.evaluate(decisions, probabilities, estimates=estimates, config=config),
        examples=tuple(_examples(decisions, probabilities, estimates)),
    )


def as_text(found: Replay) -> str:
    """Lines for a terminal."""
    judged = found.evaluation
    versions = ", ".join(found.versions)
    rows = [("", "in force", "", found.policy, "change"), *_cells(judged)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        f"{found.policy} instead of the policy in force (router {versions}): {judged.rows:,} decisions for "
        f"{judged.tasks:,} tasks",
        f"{found.differing_share:.1%} of the decisions differ; what was chosen is worth "
        f"{_effective(judged):,.0f} decisions of this policy",
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]
    if found.without_text:
        lines += ["", f"{found.without_text:,} receipts without text are left out: no router can read them again."]
    if found.without_waits:
        lines += ["", f"{found.without_waits:,} receipts from before waits were recorded are left out."]
    lines += ["", "In brackets 95 % intervals, from bootstrap draws of tasks.", *judged.notes]
    if found.examples:
        lines += ["", "For example, estimated success and dollars of the one that was chosen and of the other:"]
        lines += [_line(example) for example in found.examples]
    return "\n".join(lines)


def _cells(judged: Evaluation) -> Iterator[tuple[str, str, str, str, str]]:
    """One line for each estimator of each quantity."""
    for name, quantity in judged.quantities.items():
        title, form = _ROWS[name]
        observed = _shown(quantity.observed, form)
        for kind in (kind for kind in ESTIMATORS if kind in quantity.estimates):
            there, change = quantity.estimates[kind], quantity.changes[kind]
            yield title, observed, kind.upper(), _shown(there, form), _shown(change, "+" + form)
            title = observed = ""


def _effective(judged: Evaluation) -> float:
    return judged.quantities["reward"].effective_rows if "reward" in judged.quantities else float("nan")


def _examples(decisions: Decisions, probabilities: Numbers, estimates: Estimates) -> Iterator[Example]:
    """Rows where the most probable choice is another one, evenly over time."""
    instead = probabilities.argmax(axis=1)
    rows = np.flatnonzero(instead != decisions.chosen)
    for row in rows[np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(np.intp)].tolist():
        pair = [int(decisions.chosen[row]), int(instead[row])]
        success, cost = (values[row, pair].tolist() for values in (estimates.success, estimates.cost_usd))
        yield Example(
            task_id=decisions.task_ids[row],
            attempt=int(decisions.attempts[row]),
            prompt=decisions.prompts[row],
            chosen=decisions.candidates[pair[0]],
            instead=decisions.candidates[pair[1]],
            success=(success[0], success[1]),
            cost_usd=(cost[0], cost[1]),
            reward=float(decisions.rewards[row]),
        )


def _line(example: Example) -> str:
    parts = [
        f"  {example.task_id} #{example.attempt}  {example.chosen} -> {example.instead}",
        f"success {example.success[0]:.2f} -> {example.success[1]:.2f}",
    ]
    if np.isfinite(example.cost_usd).any():
        parts.append(" -> ".join("$?" if np.isnan(one) else f"${one:.3g}" for one in example.cost_usd))
    parts.append("reward not known" if np.isnan(example.reward) else f"earned {example.reward:.2f}")
    if example.prompt:
        words = " ".join(example.prompt.split())
        parts.append(repr(words if len(words) <= _SHOWN_OF_PROMPT else words[: _SHOWN_OF_PROMPT - 3] + "..."))
    return "  ".join(parts)


def _shown(figure: Figure, form: str) -> str:
    if np.isnan(figure.value):
        return "not known"
    if np.isnan(figure.interval).any():
        return f"{format(figure.value, form)} [not known]"
    return f"{format(figure.value, form)} [{', '.join(format(bound, form) for bound in figure.interval)}]"
