"""The losses of a training, read from its logs: a plot, and the numbers that identify the training."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

FIRST_STEPS = 200  # every loss of these steps is shipped, and another run of the same command shows the same losses
LATER_EVERY = 50  # of the later steps, one loss in so many is shipped
SMOOTHED_STEPS = 100  # the plot's smooth line is a mean over so many steps


def read_losses(logs: Sequence[Path], name: str) -> dict[int, float]:
    """Read one logged figure by step from the CSV logs of a run and its resumptions.

    Args:
        logs: The logs in the order in which they were written. From its first step on, a later log replaces an
            earlier one.
        name: The name of the figure's column.
    """
    merged: dict[int, float] = {}
    for log in logs:
        with log.open(newline="", encoding="utf-8") as file:
            logged = {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
        if logged:
            merged = {step: value for step, value in merged.items() if step < min(logged)} | logged
    return merged


def write_losses(losses: dict[int, float], path: Path) -> None:
    """Write a CSV file with the first losses and a sample of the later ones.

    Args:
        losses: Losses by step.
        path: The file to write.
    """
    kept = [step for step in sorted(losses) if step < FIRST_STEPS or step % LATER_EVERY == 0]
    path.write_text("step,train_loss\n" + "".join(f"{step},{losses[step]:.8g}\n" for step in kept), encoding="utf-8")


def plot_losses(train: dict[int, float], validation: dict[int, float], path: Path, title: str) -> None:
    """Plot training and validation loss over the steps.

    Args:
        train: Training losses by step.
        validation: Validation losses by step.
        path: The image file to write.
        title: The title of the plot.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = sorted(train)
    losses = np.array([train[step] for step in steps])
    axes.plot(steps, losses, color="C0", alpha=0.2, lw=0.6, label="training, single batches")
    if len(losses) > SMOOTHED_STEPS:
        smooth = np.convolve(losses, np.ones(SMOOTHED_STEPS) / SMOOTHED_STEPS, mode="valid")
        axes.plot(steps[SMOOTHED_STEPS - 1 :], smooth, color="C0", label=f"training, mean of {SMOOTHED_STEPS} batches")
    validated = sorted(validation)
    axes.plot(validated, [validation[step] for step in validated], "o-", ms=3, color="C1", label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", yscale="log", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
