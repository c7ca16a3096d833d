"""Plots of a comparison and of a calibration.

The functions take plain data and decode nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from learn2pd.evaluation.tables import within

MARKS = "osD^vP<X>hp"
LEARNED = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b", "#bcbd22")
MUTED = ("#555555", "#9a9a9a", "#7a8fa6", "#a68f7a", "#8aa68a", "#a68aa0")
LINES = ("-", "--", ":")
PANEL = 5.6  # width and height of a panel, inches
# Methods whose accuracy is further than this below that of one token a step are named at the foot of a plot instead of
# being drawn, so that the other methods can be told apart.
DEPTH = 0.25


def plot_tradeoff(comparison: dict[str, Any], path: Path, margin: float, by_task: bool = False) -> None:
    """Plot accuracy (agreement where no checker judges) against tokens per forward.

    Each panel shows all tasks under one stop rule, or one task. Trained families are drawn thick, in colours and with
    their intervals; the others are drawn thin and grey. A line is the curve of a family. One token a step, with the
    margin below it, and the oracle are drawn as marks.

    Args:
        comparison: the object of compare.json; its rows and curves are drawn.
        path: the image file to write.
        margin: accuracy that `fastest within` may lose, as a share of the prompts.
        by_task: draw a panel for each task under the first stop rule, not one for each stop rule over all tasks.
    """
    rows = [row for row in comparison["rows"] if not row["model"]]  # forwards of another model have no place here
    first = rows[0]["stop"]
    if by_task:
        drawn = [row for row in rows if row["task"] != "all" and row["stop"] == first]
    else:
        drawn = [row for row in rows if row["task"] == "all"]
    panels = list(dict.fromkeys(row["task" if by_task else "stop"] for row in drawn))
    figure, grid = plt.subplots(
        1, len(panels), figsize=(PANEL * len(panels) + 2.6, PANEL), layout="constrained", squeeze=False
    )
    style = _styles(rows)
    for name, axes in zip(panels, grid[0], strict=True):
        inside = [row for row in drawn if row["task" if by_task else "stop"] == name]
        curves = {
            line["family"]: line
            for line in comparison["curves"]
            if (line["stop"], line["task"]) == (inside[0]["stop"], inside[0]["task"])
        }
        _draw_panel(axes, inside, curves, style, margin)
        axes.set_title(f"task {name}, stop {first}" if by_task else f"all tasks, stop {name}", parse_math=False)
    handles = {
        label: handle for axes in grid[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    legend = figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a method's name is the user's text and not TeX
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _recipe(row: dict[str, Any]) -> str:
    """Return the name that a colour stands for: a family, or a group of families that are seeds of one recipe."""
    return str(row["group"] or row["family"])


def _styles(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the style of each recipe, which is the same in every panel."""
    kinds = {_recipe(row): row["kind"] for row in rows}
    styles: dict[str, dict[str, Any]] = {}
    for name, kind in kinds.items():
        place = [other for other in kinds if kinds[other] == kind].index(name)
        mark = MARKS[place % len(MARKS)]
        if kind == "learned":
            styles[name] = {"color": LEARNED[place % len(LEARNED)], "marker": mark, "lw": 2.2, "ms": 6, "zorder": 4}
        elif kind == "oracle":
            styles[name] = {"color": "black", "marker": "*", "lw": 1, "ms": 14, "zorder": 5}
        else:
            line = LINES[place // len(MUTED) % len(LINES)]
            styles[name] = {
                "color": MUTED[place % len(MUTED)],
                "marker": mark,
                "ls": line,
                "lw": 1.1,
                "ms": 4.5,
                "zorder": 3,
            }
    return styles


def _draw_panel(
    axes: Any,
    rows: Sequence[dict[str, Any]],
    curves: dict[str, dict[str, Any]],
    style: dict[str, dict[str, Any]],
    margin: float,
) -> None:
    measure = "accuracy" if all(row["accuracy"] is not None for row in rows) else "agreement"
    rows = [row for row in rows if row[measure] is not None]
    plain = next((row for row in rows if row["mark"] == "reference"), None)
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    if plain is not None and len(families[plain["family"]]) == 1:
        del families[plain["family"]]  # one token a step is drawn as a mark
    for name, points in families.items():
        _draw_family(axes, points, curves.get(name), style[_recipe(points[0])], measure)
    if plain is not None:
        level = 100 * plain[measure]
        axes.plot(
            plain["tokens_per_forward"],
            level,
            "*",
            color="white",
            mec="black",
            ms=14,
            zorder=6,
            label=f"{plain['method']} (one token a step)",
        )
        axes.axhspan(level - 100 * margin, level, color="C0", alpha=0.12, lw=0, label=f"within {100 * margin:g} points")
    for row in rows:
        if row["kind"] == "oracle":
            axes.axvline(row["tokens_per_forward"], color="black", lw=0.8, ls=":")
    if plain is not None and (low := [row for row in rows if row[measure] < plain[measure] - DEPTH]):
        # The names at the foot of the plot take 3 points of space.
        axes.set_ylim(100 * (plain[measure] - DEPTH) - 3, min(101, axes.get_ylim()[1]))
        named = ", ".join(
            f"{row['method']} ({100 * row[measure]:.0f}% at {row['tokens_per_forward']:.1f})" for row in low
        )
        axes.text(
            0.01, 0.01, textwrap.fill(f"below: {named}", 90), transform=axes.transAxes, fontsize=7, parse_math=False
        )
    axes.set(xlabel="tokens per forward (answer tokens only)", ylabel=f"{measure}, %")
    axes.grid(alpha=0.25)


def _draw_family(
    axes: Any, points: Sequence[dict[str, Any]], curve: dict[str, Any] | None, style: dict[str, Any], measure: str
) -> None:
    dots = {name: value for name, value in style.items() if name not in ("ls", "lw")}
    x = np.array([row["tokens_per_forward"] for row in points])
    y = 100 * np.array([row[measure] for row in points])
    label = _recipe(points[0]) + (" (second model)" if points[0]["second_model"] else "")
    if points[0]["kind"] == "learned":
        spread_x = np.abs(np.array([row["tokens_per_forward_interval"] or [np.nan] * 2 for row in points]).T - x)
        spread_y = np.abs(100 * np.array([row[f"{measure}_interval"] or [np.nan] * 2 for row in points]).T - y)
        axes.errorbar(
            x,
            y,
            xerr=spread_x,
            yerr=spread_y,
            fmt="none",
            ecolor=style["color"],
            elinewidth=0.8,
            alpha=0.45,
            zorder=style["zorder"],
        )
    axes.plot(x, y, ls="", label="_" if curve else label, **dots)
    if curve:
        hull = [(each["tokens_per_forward"], 100 * each[measure]) for each in curve["points"] if each["on_hull"]]
        axes.plot(
            *zip(*hull, strict=True), **{name: value for name, value in style.items() if name not in ("marker", "ms")}
        )
        axes.plot([], [], label=label, **style)


def plot_fastest(comparison: dict[str, Any], path: Path, margin: float) -> None:
    """Plot the tokens per forward of every family's fastest setting within the margin.

    The plot shows all tasks under the first stop rule, with the best family on top.

    Args:
        comparison: the object of compare.json; its rows and its fastest settings are drawn.
        path: the image file to write.
        margin: accuracy that may be lost, as a share of the prompts.
    """
    lines = [
        line
        for line in comparison["fastest"]
        if line["task"] == "all" and line["stop"] == comparison["fastest"][0]["stop"]
    ]
    lines.sort(key=lambda line: line["tokens_per_forward"])
    style = _styles(comparison["rows"])
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(lines) + 1.4), layout="constrained")
    for place, line in enumerate(lines):
        speed = line["tokens_per_forward"]
        edges = line["tokens_per_forward_interval"]
        axes.barh(
            place, speed, color=style[_recipe(line)]["color"], alpha=0.9 if line["kind"] != "training-free" else 0.55
        )
        axes.plot(edges, [place, place], color="black", lw=1)
        share = f", {100 * line['oracle_share']:.0f}% of the oracle" if line.get("oracle_share") is not None else ""
        note = (
            f"{speed:.2f}: {line['setting'] or line['method']}"
            if line["method"]
            else f"{speed:.2f}: no setting, one token a step"
        )
        axes.text(max(edges[1], speed), place, f"  {note}{share}", va="center", fontsize=7, parse_math=False)
    names = [line["family"] + (" (second model)" if line["second_model"] else "") for line in lines]
    axes.set_yticks(range(len(lines)), names, fontsize=8, parse_math=False)
    axes.set(
        xlabel="tokens per forward",
        title=f"Fastest setting {within(margin)}",
        ymargin=0.01,
    )
    axes.set_xlim(0, 1.35 * max(line["tokens_per_forward_interval"][1] for line in lines))
    axes.grid(alpha=0.25, axis="x")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def reliability(
    probability: np.ndarray[Any, Any], label: np.ndarray[Any, Any], bins: int = 10
) -> list[dict[str, float]]:
    """Sort proposals into bins of equal width by their probability.

    Args:
        probability: [M] float, from 0 to 1.
        label: [M], 1 where the proposal was right, else 0.
        bins: number of bins.

    Returns:
        For each bin that is not empty: its mean probability, the share of right proposals, and the number of proposals.
    """
    place = np.minimum((probability * bins).astype(int), bins - 1)
    members = [(index, place == index) for index in range(bins)]
    return [
        {
            "bin": index,
            "probability": float(probability[inside].mean()),
            "right": float(label[inside].mean()),
            "count": int(inside.sum()),
        }
        for index, inside in members
        if inside.any()
    ]


def plot_reliability(bins: Sequence[dict[str, float]], threshold: float, path: Path) -> None:
    """Plot how often proposals of the validation prompts were final against the filter's probability.

    Args:
        bins: the bins that `reliability` returns.
        threshold: the filter's threshold, which is drawn as a line.
        path: the image file to write.
    """
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(5, 5.5), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    upper.plot([0, 1], [0, 1], "--", color="grey", lw=1, label="perfectly calibrated")
    upper.plot([entry["probability"] for entry in bins], [entry["right"] for entry in bins], "o-", label="filter")
    for axes in (upper, lower):
        axes.axvline(threshold, color="C3", lw=1, label=f"chosen threshold {threshold:.3f}")
        axes.grid(alpha=0.3)
    upper.set(ylabel="share of proposals that are final", title="Reliability of the filter, validation prompts")
    upper.legend(fontsize=8)
    width = 0.08
    lower.bar([entry["probability"] for entry in bins], [entry["count"] for entry in bins], width=width)
    lower.set(xlabel="probability given by the filter", ylabel="masked positions", yscale="log", xlim=(0, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_commit_steps(lines: Sequence[tuple[str, Sequence[str], Sequence[int]]], title: str, path: Path) -> None:
    """Plot, as a heat map, the forward at which each position of one answer was committed.

    Args:
        lines: for each method, its name, the texts of its tokens, and the steps of their commits (-1 where a position
            was not committed).
        title: title of the plot.
        path: the image file to write.
    """
    longest = max(len(steps) for _, _, steps in lines)
    grid = np.full((len(lines), longest), np.nan)
    for number, (_, _, steps) in enumerate(lines):
        grid[number, : len(steps)] = [step + 1 if step >= 0 else np.nan for step in steps]
    figure, axes = plt.subplots(figsize=(max(7.0, 0.33 * longest + 2), 0.6 * len(lines) + 1.9), layout="constrained")
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    for number, (_, tokens, _) in enumerate(lines):
        for place, token in enumerate(tokens):
            dark = np.isnan(grid[number, place]) or grid[number, place] < 0.6 * np.nanmax(grid)
            axes.text(
                place,
                number,
                token,
                ha="center",
                va="center",
                fontsize=6,
                rotation=90,
                color="white" if dark else "black",
                parse_math=False,
            )
    axes.set_yticks(range(len(lines)), [name for name, _, _ in lines], parse_math=False)
    axes.set(xlabel="position in the answer", title=title)
    figure.colorbar(image, ax=axes, label="forward of the commit")
    figure.savefig(path, dpi=130)
    plt.close(figure)
