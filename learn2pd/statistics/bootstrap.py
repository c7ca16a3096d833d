"""95% percentile bootstrap intervals over prompts, the same resamples for every method, so that methods are compared in pairs.

A statistic is kept as *values*, a vector [1 + R]: first that of the whole sample, then that of each of R resamples. Sums over prompts are
all a resample has to give: means, ratios and what is built of them (curves, the fastest setting, areas) are worked out value by value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
COUNTS_AT_ONCE = 4_000_000  # numbers (32 MB) of resample counts kept at a time


class Bootstrap:
    """Args: samples, R; seed of the draws, which depend on it, on R and on the number of prompts alone."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def sums(self, columns: NDArray[Any]) -> Values:
        """[1 + R, K] the sums over the N prompts of columns [N, K], of the whole sample and of each resample."""
        count, rows = len(columns), max(1, COUNTS_AT_ONCE // max(1, len(columns)))
        columns, rng = columns.astype(np.float64), np.random.default_rng(self.seed)
        found = [columns.sum(0, keepdims=True)]
        for first in range(0, self.samples, rows):
            size = min(rows, self.samples - first)
            drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
            found.append(
                np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64) @ columns
            )
        return np.concatenate(found)


def point(values: Values) -> float | None:
    """The value of the whole sample, None where it is no number."""
    return float(values[0]) if np.isfinite(values[0]) else None


def interval(values: Values) -> list[float] | None:
    """The 2.5% and 97.5% quantiles over the resamples, None where one of them has no value."""
    return (
        [round(float(edge), 4) for edge in np.quantile(values[1:], (0.025, 0.975))]
        if np.isfinite(values).all()
        else None
    )


def better(values: Values) -> float:
    """Share of the resamples above 0; half a tie counts."""
    return float(((values[1:] > 0) + 0.5 * (values[1:] == 0)).mean())
