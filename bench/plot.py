"""One figure for each benchmark: a panel for each metric, its runs from left to right, with their spreads.

flowray is drawn strong, its peers pale, each run's median as a point with its least and greatest repeat as a bar;
the committed baseline is a dashed line with its spread as a band. The vertical axis starts at zero, so that what looks
like twice as much is twice as much, unless a peer is so far away that nothing could be seen: then it is logarithmic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from bench.measure import FLOWRAY, higher_is_better
from bench.report import Document, number

RUNS = 30  # drawn, the newest
_COLUMNS = 3
_LEGEND_COLUMNS = 6  # a wider legend would leave no room for the panels
_OURS = "#0b5fa5"
_PEERS = ("#d9822b", "#7a9e3c", "#9b6bb3", "#8a8a8a", "#c0504d", "#3aa6a0", "#b08d57", "#d77fb4")
_INK, _PALE = "#222222", "#d8d8d8"
_LOGARITHMIC_FROM = 30.0  # times between the least and the greatest value of a panel
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#555555",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "flowray",
}


def draw(name: str, runs: Sequence[Document], baseline: Document | None, directory: Path) -> list[Path]:
    """Write NAME.png and NAME.svg into the directory; the runs come oldest first."""
    runs = list(runs)[-RUNS:]
    metrics = [result["metric"] for result in runs[-1]["results"]]
    peers = list(dict.fromkeys(p for run in runs for result in run["results"] for p in result["peers"]))
    colours = {peer: _PEERS[i % len(_PEERS)] for i, peer in enumerate(peers)}
    rows = -(-len(metrics) // _COLUMNS)
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            rows, _COLUMNS, figsize=(4.1 * _COLUMNS, 2.35 * rows + 1.3), squeeze=False, layout="constrained"
        )
        panels = list(grid.flat)
        for panel, metric in zip(panels, metrics, strict=False):
            _panel(panel, metric, runs, _result(baseline, metric), colours)
        for unused in panels[len(metrics) :]:
            unused.set_axis_off()
        machine, versions = runs[-1]["machine"], runs[-1]["versions"]
        figure.suptitle(f"flowray bench: {name}\n\n", x=0.008, ha="left", fontsize=14, fontweight="bold")
        figure.text(
            0.008,
            1 - 0.68 / figure.get_figheight(),
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
            f"Linux {machine['kernel']}, load {machine['load_average'][0]} at the start of the last run, "
            f"{runs[-1]['at_utc']}\n" + ", ".join(f"{name} {version}" for name, version in versions.items()),
            fontsize=8.5,
            color="#666666",
        )
        figure.legend(
            handles=_legend(colours, baseline is not None),
            loc="outside lower left",
            ncols=min(len(colours) + 2, _LEGEND_COLUMNS),
            frameon=False,
        )
        paths = [directory / f"{name}.{kind}" for kind in ("png", "svg")]
        directory.mkdir(parents=True, exist_ok=True)
        for path in paths:
            figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return paths


def _panel(
    panel: Axes, metric: str, runs: Sequence[Document], before: dict[str, Any] | None, colours: dict[str, str]
) -> None:
    results = [_result(run, metric) for run in runs]
    last = results[-1]
    assert last is not None  # the metrics are the last run's
    if before is not None and before["flowray"] is not None:
        panel.axhspan(*before["spread"], color=_OURS, alpha=0.10, lw=0)
        panel.axhline(before["flowray"], color=_OURS, ls=(0, (4, 3)), lw=0.9, alpha=0.7)
    sides = [peer for peer in colours if any(r and peer in r["peers"] for r in results)]
    # Side by side within a run, so that one bar does not hide another.
    step = min(0.12, 0.8 / (len(sides) + 1))
    offsets = {side: (i - len(sides) / 2) * step for i, side in enumerate([FLOWRAY, *sides])}
    for side in (*reversed(sides), FLOWRAY):
        colour = _OURS if side == FLOWRAY else colours[side]
        points = [(i + offsets[side], *_figure(r, side)) for i, r in enumerate(results) if r and _has(r, side)]
        if not points:  # an empty series would have a box of its own, at the origin, and the layout would heed it
            continue
        x, y = [p[0] for p in points], [p[1] for p in points]
        bars = [[max(0.0, p[1] - p[2][0]) for p in points], [max(0.0, p[2][1] - p[1]) for p in points]]
        panel.errorbar(
            x,
            y,
            yerr=bars,
            color=colour,
            marker="o" if side == FLOWRAY else "s",
            ms=5.5 if side == FLOWRAY else 4,
            lw=1.6 if side == FLOWRAY else 1.0,
            elinewidth=1.4,
            capsize=2.5,
            clip_on=False,
            alpha=1.0 if side == FLOWRAY else 0.75,
            zorder=3 if side == FLOWRAY else 2,
        )
    _axes(panel, last, [*results, before], runs)


def _axes(
    panel: Axes, last: dict[str, Any], results: Sequence[dict[str, Any] | None], runs: Sequence[Document]
) -> None:
    better = "more is better" if higher_is_better(last["unit"]) else "less is better"
    panel.set_title(last["metric"], pad=16)
    text = last["unit"] if last["flowray"] is None else f"{number(last['flowray'])} {last['unit']}"
    if last["ratio"] is not None:
        text += f", {last['ratio']:.2f} times {next(iter(last['peers']))}"
    panel.text(0, 1.03, f"{text}  ({better})", transform=panel.transAxes, fontsize=8, color="#555555")
    values = [
        v
        for r in results
        if r
        for v in (*r["peers"].values(), *(r["spread"] or ()), *itertools.chain(*r["peers_spread"].values()))
    ]
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOGARITHMIC_FROM:
        panel.set_yscale("log")
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_minor_formatter(NullFormatter())
    else:
        panel.set_ylim(bottom=min(0.0, low), top=1.08 * high if high > 0 else 1.0)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    panel.grid(axis="y", color=_PALE, lw=0.6)
    panel.set_axisbelow(True)
    panel.set_xlim(-0.6, len(runs) - 0.4)
    step = max(1, -(-len(runs) // 4))
    shown = list(range(len(runs) - 1, -1, -step))[::-1]
    panel.set_xticks(shown, [_when(runs[i]["at_utc"]) for i in shown], fontsize=7.5)
    panel.tick_params(length=0)


def _legend(colours: dict[str, str], with_baseline: bool) -> list[Line2D]:
    lines = [Line2D([], [], color=_OURS, marker="o", lw=1.6, label="flowray")]
    lines += [Line2D([], [], color=colour, marker="s", ms=4, lw=1.0, label=peer) for peer, colour in colours.items()]
    if with_baseline:
        lines.append(Line2D([], [], color=_OURS, ls=(0, (4, 3)), lw=0.9, label="flowray's baseline and its spread"))
    return lines


def _result(run: Document | None, metric: str) -> dict[str, Any] | None:
    found: Iterator[dict[str, Any]] = (r for r in (run["results"] if run is not None else ()) if r["metric"] == metric)
    return next(found, None)


def _has(result: dict[str, Any], side: str) -> bool:
    return side in result["peers"] if side != FLOWRAY else result["flowray"] is not None


def _figure(result: dict[str, Any], side: str) -> tuple[float, list[float]]:
    if side == FLOWRAY:
        return result["flowray"], result["spread"]
    return result["peers"][side], result["peers_spread"][side]


def _when(at_utc: str) -> str:
    return datetime.strptime(at_utc, "%Y-%m-%dT%H:%M:%SZ").strftime("%d %b\n%H:%M")
