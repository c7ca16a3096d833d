"""What a comparison looks like: a Markdown table and three plots. Takes plain data, decodes nothing."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

MARKERS = {"none": "o", "eot": "D", "eotp_paper": "s"}


def markdown(rows: Sequence[dict[str, Any]], meta: dict[str, Any]) -> str:
    """All rows, those over all tasks first, with their intervals."""
    lines = [
        f"# Comparison: {meta['model']}",
        "",
        f"{meta['prompts']} held-out prompts, seed {meta['seed']}, canvas {meta['gen_length']}, block {meta['block_length']}, "
        f"batch {meta['batch_size']}, {meta['device']}, {meta['dtype']}. Brackets: 95% bootstrap ({meta['bootstrap_samples']} resamples). "
        "Speedup is in forwards, against vanilla and against threshold with the same stop rule.",
        "",
        "| task | method | cache | stop | accuracy % | agreement % | forwards | tokens/forward | tokens/s | speedup | vs threshold |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["task"] != "all"):
        cells = [
            row["task"],
            row["method"],
            row["cache"],
            row["stop"],
            _percent(row["accuracy"], row["accuracy_interval"]),
            _percent(row["agreement"], row["agreement_interval"]),
            f"{row['forwards_mean']:.1f}",
            f"{row['tokens_per_forward']:.2f} [{row['tokens_per_forward_interval'][0]:.2f}, {row['tokens_per_forward_interval'][1]:.2f}]",
            f"{row['tokens_per_second']:.1f}",
            _times(row["speedup_forwards"]),
            _times(row["speedup_forwards_threshold"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(value: float | None, interval: list[float] | None) -> str:
    return "n/a" if value is None or interval is None else f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _times(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}x"


def plot_tradeoff(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy (agreement where nothing judges) against tokens per forward, over all tasks, with intervals; a sweep's points are joined."""
    chosen = [row for row in rows if row["task"] == "all"]
    measure = "accuracy" if all(row["accuracy"] is not None for row in chosen) else "agreement"
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    curves: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in chosen:
        curves.setdefault((row["family"], row["cache"], row["stop"]), []).append(row)
    palette = plt.get_cmap("tab20").colors
    colours = {family: palette[number % len(palette)] for number, family in enumerate(dict.fromkeys(row["family"] for row in chosen))}
    for (family, cache, stop), points in curves.items():
        x = np.array([row["tokens_per_forward"] for row in points])
        y = 100 * np.array([row[measure] for row in points])
        spread_x = np.abs(np.array([row["tokens_per_forward_interval"] for row in points]).T - x)
        spread_y = np.abs(100 * np.array([row[f"{measure}_interval"] for row in points]).T - y)
        label = family + (f", cache {cache}" if cache != "none" else "") + f", stop {stop}"
        axes.errorbar(
            x, y, xerr=spread_x, yerr=spread_y, fmt=MARKERS.get(stop, "^"), ls="-" if len(points) > 1 else "", color=colours[family],
            mfc="white" if stop == "none" else colours[family], capsize=2, lw=0.8, label=label,
        )  # fmt: skip
    axes.set(
        xlabel="tokens per forward (answer tokens only)",
        ylabel=f"{measure}, %",
        title="Accuracy against tokens per forward, all tasks, 95% intervals",
    )
    axes.grid(alpha=0.3)
    for text in axes.legend(fontsize=7, loc="best").get_texts():
        text.set_parse_math(False)  # a method's name is the user's
    figure.savefig(path, dpi=130)
    plt.close(figure)


def reliability(probability: np.ndarray[Any, Any], label: np.ndarray[Any, Any], bins: int = 10) -> list[dict[str, float]]:
    """Equal-width bins with mean probability, share of right proposals, and count."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    chosen = [(index, place == index) for index in range(bins)]
    return [
        {"bin": index, "probability": float(probability[inside].mean()), "right": float(label[inside].mean()), "count": int(inside.sum())}
        for index, inside in chosen
        if inside.any()
    ]


def plot_reliability(bins: Sequence[dict[str, float]], threshold: float, path: Path) -> None:
    """The filter's probability against how often the proposal was final, on validation prompts."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(5, 5.5), sharex=True, height_ratios=[3, 1], layout="constrained")
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


def plot_losses(logs: Sequence[Path], path: Path, title: str) -> None:
    """Training and validation loss over the steps, from the CSV logs of one run and its resumptions; later logs replace earlier ones."""
    found: dict[str, dict[int, float]] = {"train_loss": {}, "val_loss": {}}
    for log in logs:
        with log.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for name, values in found.items():
            mine = {int(row["step"]): float(row[name]) for row in rows if row.get(name)}
            found[name] = {step: value for step, value in values.items() if not mine or step < min(mine)} | mine
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = sorted(found["train_loss"])
    losses = np.array([found["train_loss"][step] for step in steps])
    axes.plot(steps, losses, color="C0", alpha=0.25, lw=0.8, label="training, single batches")
    width = 15
    if len(losses) > width:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color="C0", label=f"training, mean of {width} logged batches")
    axes.plot(sorted(found["val_loss"]), [found["val_loss"][step] for step in sorted(found["val_loss"])], "o-", color="C1", label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", yscale="log", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_commit_steps(lines: Sequence[tuple[str, Sequence[str], Sequence[int]]], title: str, path: Path) -> None:
    """A heat map: for each method (name, tokens, steps) the forward at which each position of one answer was committed."""
    longest = max(len(steps) for _, _, steps in lines)
    grid = np.full((len(lines), longest), np.nan)
    for number, (_, _, steps) in enumerate(lines):
        grid[number, : len(steps)] = [step + 1 if step >= 0 else np.nan for step in steps]
    figure, axes = plt.subplots(figsize=(max(7.0, 0.33 * longest + 2), 0.6 * len(lines) + 1.9), layout="constrained")
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    for number, (_, tokens, _) in enumerate(lines):
        for place, token in enumerate(tokens):
            dark = np.isnan(grid[number, place]) or grid[number, place] < 0.6 * np.nanmax(grid)
            axes.text(place, number, token, ha="center", va="center", fontsize=6, rotation=90, color="white" if dark else "black", parse_math=False)
    axes.set_yticks(range(len(lines)), [name for name, _, _ in lines], parse_math=False)
    axes.set(xlabel="position in the answer", title=title)
    figure.colorbar(image, ax=axes, label="forward of the commit")
    figure.savefig(path, dpi=130)
    plt.close(figure)
