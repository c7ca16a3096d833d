"""Percentile bootstrap intervals (95%) over prompts.

Every method is resampled with the same draws of prompts, so that two methods are compared in pairs.

A statistic is kept as *values*, a vector [1 + R]. The first entry is the statistic of the whole sample; the other R
entries are its values in the R resamples. A resample only provides sums over prompts. Means, ratios and everything
built from them (curves, the fastest setting, areas) are computed from those sums, for each entry separately.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
COUNTS_AT_ONCE = 4_000_000  # counts of draws (32 MB as float64) that are held in memory at the same time


class Bootstrap:
    """Draws resamples of prompts and sums columns of numbers over them.

    The draws depend on the seed, on the number of resamples and on the number of prompts, and on nothing else.

    Args:
        samples: number of resamples, R.
        seed: seed of the draws.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def sums(self, columns: NDArray[Any]) -> Values:
        """Sum columns over the prompts of the whole sample and of each resample.

        Args:
            columns: [N, K] numbers, one row for each of the N prompts.

        Returns:
            [1 + R, K] sums: the first row is of the whole sample, the others are of the resamples.
        """
        count = len(columns)
        rows = max(1, COUNTS_AT_ONCE // max(1, count))
        columns = columns.astype(np.float64)
        rng = np.random.default_rng(self.seed)
        parts = [columns.sum(0, keepdims=True)]
        for first in range(0, self.samples, rows):
            size = min(rows, self.samples - first)
            drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
            times_drawn = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
            parts.append(times_drawn.astype(np.float64) @ columns)
        return np.concatenate(parts)


def point(values: Values) -> float | None:
    """Return the statistic of the whole sample, or None where it is not a finite number."""
    return float(values[0]) if np.isfinite(values[0]) else None


def interval(values: Values) -> list[float] | None:
    """Return the 2.5% and 97.5% quantiles over the resamples, rounded to four decimals.

    The result is None where the statistic is not finite in the whole sample or in any resample.
    """
    if not np.isfinite(values).all():
        return None
    return [round(float(edge), 4) for edge in np.quantile(values[1:], (0.025, 0.975))]


def better(values: Values) -> float:
    """Return the share of the resamples in which the statistic is above 0; a resample at exactly 0 counts as half."""
    return float(((values[1:] > 0) + 0.5 * (values[1:] == 0)).mean())
