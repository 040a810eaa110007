"""What an evaluation found, for people: one HTML page that needs nothing else, or lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from flowray.routing import charts
from flowray.routing.evaluation import SetReport
from flowray.routing.judge import BAR, ROUTER, Metric
from flowray.routing.page import page


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meaning:
    """How a metric is shown."""

    title: str
    down: bool = False  # less is better
    neutral: bool = False  # neither more nor less is: it is to be read together with another
    form: str = ".3f"


_MEANINGS: dict[str, _Meaning] = {
    "success_accuracy": _Meaning(title="success, accuracy"),
    "success_auc": _Meaning(title="success, AUC"),
    "within_agent_auc": _Meaning(title="AUC within an agent"),
    "brier": _Meaning(title="Brier score", down=True),
    "ece": _Meaning(title="calibration error (ECE)", down=True),
    "unseen_success_accuracy": _Meaning(title="unseen agents, accuracy"),
    "unseen_success_auc": _Meaning(title="unseen agents, AUC"),
    "after_attempt_accuracy": _Meaning(title="one attempt known, accuracy"),
    "after_attempt_auc": _Meaning(title="one attempt known, AUC"),
    "routed_success": _Meaning(title="routed success"),
    "q60_share": _Meaning(title="60 % cheaper, share of best single", form=".1%"),
    "aiq": _Meaning(title="AIQ"),
    "usd_per_million_tokens": _Meaning(title="$ per million tokens at 98.5 %", down=True, form=".2f"),
    "q60_share_fixed": _Meaning(title="price set on val: share of best single", form=".1%"),
    "cost_cut_fixed": _Meaning(title="price set on val: money saved", form=".1%", neutral=True),
    "category_accuracy": _Meaning(title="category", form=".1%"),
    "capability_accuracy": _Meaning(title="capability", form=".1%"),
    "task_accuracy": _Meaning(title="task type", form=".1%"),
    "subject_accuracy": _Meaning(title="subject", form=".1%"),
    "domain_accuracy": _Meaning(title="domain, in scope", form=".1%"),
    "intent_accuracy": _Meaning(title="intent, in scope", form=".1%"),
    "oos_recall": _Meaning(title="out of scope, found", form=".1%"),
    "apgr": _Meaning(title="APGR"),
    "apgr_gsm8k": _Meaning(title="APGR, GSM8K"),
    "cpt50": _Meaning(title="CPT 50 %", down=True, form=".1%"),
    "cpt80": _Meaning(title="CPT 80 %", down=True, form=".1%"),
    "latency_median_ape": _Meaning(title="latency, median error", down=True, form=".1%"),
    "latency_r2": _Meaning(title="latency, R² (log)"),
}
_METHODS = ("majority", "agent_prior", "table", "knn", "logistic", "best_single", "random_mixing")
_NAMES = {
    "agent_prior": "agent prior",
    "knn": "kNN",
    "best_single": "best single",
    "random_mixing": "random mixing",
    "single": "one agent alone",
}


def as_text(reports: Sequence[SetReport]) -> str:
    """One line per metric: the router with its interval beside the best baseline."""
    lines = []
    for report in reports:
        lines += ["", _headline(report)]
        for name, metric in report.metrics.items():
            best = _best(name, metric.baselines)
            beside = f"{best} {_shown(name, metric.baselines[best])}" if best else ""
            lead = f"; over table {_lead(name, metric)[0]}" if metric.over_table is not None else ""
            lines.append(f"  {_meaning(name).title:<38} {_router_cell(name, metric):<24} {beside}{lead}".rstrip())
        lines += [f"  {note}" for note in report.notes]
    return "\n".join(lines[1:])


def as_html(reports: Sequence[SetReport]) -> str:
    """A page with every figure, the cost-quality curves and the reliability diagrams."""
    sections = "".join(part for report in reports for part in _section(report))
    links = "".join(f'<a href="#{escape(r.name)}">{escape(r.name)}</a>' for r in reports)
    body = f"""<header>
<h1>The router on trial</h1>
<p>Everybody learnt from the same train tasks and reads the same text. The router's value stands with its 95 % interval
(bootstrap over groups of tasks), its lead over the table with that of a paired comparison: green where it is surely
better, red where surely worse. The best value of a row is bold. ↓ marks metrics where less is better.</p>
<nav>{links}</nav>
</header>
<main>{sections}</main>"""
    return page("flowray: the router on trial", body)


def _section(report: SetReport) -> Iterator[str]:
    yield f'<section id="{escape(report.name)}"><h2>{escape(report.name)}</h2>'
    yield f"<p>{escape(_headline(report).removeprefix(report.name + ': '))}</p>"
    yield "".join(f'<p class="remark">{escape(note)}</p>' for note in report.notes)
    pictures = []
    if report.curves and report.best_single:
        title = f"{report.name}: cost against quality"
        chart = charts.cost_quality(report.curves, report.singles, report.best_single, title)
        names = [name for name in report.curves if name not in charts.NOT_DRAWN]
        pictures.append(_figure("Cost against quality", chart, [*names, "single"]))
    shown = {name: report.reliability[name] for name in (ROUTER, "table") if name in report.reliability}
    if shown:
        chart = charts.reliability(shown, f"{report.name}: reliability")
        pictures.append(_figure("Reliability of estimated success", chart, list(shown)))
    yield f'<div class="pictures">{"".join(pictures)}</div>' if pictures else ""
    yield _table(report)
    yield "</section>"


def _figure(caption: str, chart: str, names: Sequence[str]) -> str:
    keys = "".join(
        f'<span class="key"><i class="{escape(name)}"></i>{escape(_called(name))}</span>'
        for name in sorted(names, key=lambda name: name != ROUTER)
    )
    return f"<figure><figcaption>{caption}</figcaption>{chart}<p class='keys'>{keys}</p></figure>"


def _table(report: SetReport) -> str:
    present = {name for metric in report.metrics.values() for name in metric.baselines}
    methods = [name for name in _METHODS if name in present]
    with_router = any(metric.router is not None for metric in report.metrics.values())
    with_oracle = any(metric.oracle is not None for metric in report.metrics.values())
    with_bar = any(metric.over_table is not None for metric in report.metrics.values())
    heads = [
        *(["router"] if with_router else []),
        *([f"router - {BAR}"] if with_bar else []),
        *map(_called, methods),
        *(["oracle"] if with_oracle else []),
    ]
    rows = []
    for name, metric in report.metrics.items():
        best = _best(name, {**metric.baselines, **({ROUTER: metric.router} if metric.router is not None else {})})
        cells = [_cell(_router_cell(name, metric), best == ROUTER, "router")] if with_router else []
        cells += [_cell(*_lead(name, metric))] if with_bar else []
        cells += [_cell(_shown(name, metric.baselines[m]) if m in metric.baselines else "", best == m) for m in methods]
        if with_oracle:
            cells.append(_cell("" if metric.oracle is None else _shown(name, metric.oracle), False, "far"))
        arrow = " ↓" if _meaning(name).down else ""
        rows.append(f'<tr><th title="{escape(name)}">{escape(_meaning(name).title)}{arrow}</th>{"".join(cells)}</tr>')
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f'<div class="wide"><table><tr><th></th>{top}</tr>{"".join(rows)}</table></div>'


def _lead(name: str, metric: Metric) -> tuple[str, bool, str]:
    """The lead over the table; better or worse where its interval leaves no doubt."""
    if metric.over_table is None or metric.over_table.value != metric.over_table.value:
        return "", False, ""
    text = format(metric.over_table.value, "+" + _meaning(name).form)
    if metric.over_table.interval is None:
        return text, False, ""
    low, high = metric.over_table.interval
    better, worse = (low > 0, high < 0) if not _meaning(name).down else (high < 0, low > 0)
    bounds = " to ".join(format(bound, "+" + _meaning(name).form) for bound in (low, high))
    verdict = "" if _meaning(name).neutral else "better" if better else "worse" if worse else ""
    return f"{text} [{bounds}]", False, verdict


def _cell(text: str, best: bool, kind: str = "") -> str:
    classes = " ".join(filter(None, (kind, "top" if best else "")))
    return f'<td class="{classes}">{escape(text)}</td>' if classes else f"<td>{escape(text)}</td>"


def _headline(report: SetReport) -> str:
    what = f"{report.name}: {report.n_tasks:,} tasks of split {report.split!r}"
    if report.n_agents:
        what += f" x {report.n_agents} agents"
    return what + (f"; best single agent: {report.best_single}" if report.best_single else "")


def _router_cell(name: str, metric: Metric) -> str:
    if metric.router is None:
        return ""
    text = _shown(name, metric.router)
    if metric.interval is None:
        return text
    low, high = (_shown(name, bound) for bound in metric.interval)
    return f"{text} [{low}, {high}]"


def _shown(name: str, value: float) -> str:
    return "not reached" if value != value else format(value, _meaning(name).form)


def _best(name: str, values: Mapping[str, float]) -> str | None:
    """Who has the best value."""
    if not values or _meaning(name).neutral:
        return None
    sign = -1 if _meaning(name).down else 1
    return max(values, key=lambda method: sign * values[method] if values[method] == values[method] else -float("inf"))


def _meaning(name: str) -> _Meaning:
    return _MEANINGS.get(name) or _Meaning(title=name)


def _called(method: str) -> str:
    return _NAMES.get(method, method)
