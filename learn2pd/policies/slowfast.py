"""SlowFast (arXiv 2506.10848): a slow phase finds out how far the model can see, and a fast phase decodes up to there.

The rule: a block is decoded in cycles. A cycle begins at position l, the start of the block at first, and has two
phases.

- Slow: `exploration` steps look at the masks from l to the end of the block. Each of them estimates the length that the
  model can see: from l to the last of these masks with confidence >= `sight`, or 1 without such a mask. The first
  estimate that agrees with those before it is the length of the cycle; it agrees where the last `stability` estimates
  have a standard deviation < `deviation`. If none does, the length is the mean of the last ones, rounded down.
- Fast: the steps look at the masks from l to the end of the cycle, until none is left there. The next cycle begins at
  the end of this one.

In both phases a step commits every position it looks at with

    confidence >= threshold

where there are at least two of them, and the most confident one otherwise.

Deviations from the authors' code:

- Their slow phase takes all its steps even where the block is finished, with forwards that commit nothing. Here the
  next block opens at once.
- In the fast phase their forwards, all but the first, leave out what lies behind the end of the cycle, and so compute
  less. Here every forward is that of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.errors import check_at_least, check_not_negative, check_probability
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory


@dataclass(frozen=True)
class Cycle(RowMemory):
    """The cycle of every row.

    Attributes:
        window_stop: [B] long, the end of the last window.
        first: [B] long, the position at which the cycle begins.
        explored: [B] long, the steps of the slow phase so far.
        estimates: [B, stability] float64, the last estimates, 0 before the first ones.
        length: [B] long, the first estimate that agreed, 0 before.
    """

    window_stop: Tensor
    first: Tensor
    explored: Tensor
    estimates: Tensor
    length: Tensor


class SlowFastPolicy(Policy):
    """SlowFast.

    Args:
        threshold: The least confidence of positions that are committed together, 0 to 1.
        sight: The least confidence of a position up to which the model can see, 0 to 1.
        exploration: The steps of a slow phase, at least `stability`.
        stability: The number of estimates that are compared, at least 2.
        deviation: The standard deviation below which the estimates agree, 0 or more.

    Raises:
        ValueError: A number is out of range.
    """

    name = "slowfast"

    def __init__(
        self,
        threshold: float = 0.9,
        sight: float = 0.3,
        exploration: int = 6,
        stability: int = 2,
        deviation: float = 1.0,
    ) -> None:
        self.threshold = check_probability("threshold", threshold)
        self.sight = check_probability("sight", sight)
        self.stability = check_at_least(2, "stability", stability)
        self.exploration = check_at_least(self.stability, "exploration", exploration)
        self.deviation = check_not_negative("deviation", deviation)

    def start(self, state: DecodeState, spec: ModelSpec) -> Cycle:
        zeros = torch.zeros_like(state.end)
        return Cycle(zeros, zeros, zeros, zeros[:, None].expand(-1, self.stability).double(), zeros)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Cycle) -> Commit:
        position = torch.arange(eligible.shape[1], device=eligible.device)
        cycle = self.entered(position, eligible, state, memory)
        slow = cycle.explored < self.exploration
        end = torch.where(slow, state.window.stop, cycle.first + cycle.length)
        region = eligible & (position >= cycle.first[:, None]) & (position < end[:, None])
        sure = region & (prediction.confidence >= self.threshold)
        several = (sure.sum(1) > 1)[:, None]
        committed = torch.where(several, sure, most_confident(prediction.confidence, region))
        seen = torch.where(region & (prediction.confidence >= self.sight), position + 1, 0).amax(1)
        return Commit(committed, memory=self.noted(cycle, slow, (seen - cycle.first).clamp_min(1)))

    def entered(self, position: Tensor, eligible: Tensor, state: DecodeState, memory: Cycle) -> Cycle:
        """Begin a cycle in the rows whose block is new, or whose cycle has no mask left.

        Args:
            position: [G] long, 0..G-1.
            eligible: [B, G] bool.
            state: The state before the commit.
            memory: The memory of the last step.

        Returns:
            The memory of this step.
        """
        opens = state.window.start >= memory.window_stop
        stop = memory.first + memory.length
        left = eligible & (position >= memory.first[:, None]) & (position < stop[:, None])
        begins = opens | ((memory.explored >= self.exploration) & ~left.any(1))
        return Cycle(
            window_stop=state.window.stop,
            first=torch.where(opens, state.window.start, torch.where(begins, stop, memory.first)),
            explored=memory.explored.masked_fill(begins, 0),
            estimates=memory.estimates.masked_fill(begins[:, None], 0),
            length=memory.length.masked_fill(begins, 0),
        )

    def noted(self, cycle: Cycle, slow: Tensor, estimate: Tensor) -> Cycle:
        """Note the estimate of a step in the rows that are in the slow phase.

        Args:
            cycle: The memory of this step.
            slow: [B] bool, the rows that are in the slow phase.
            estimate: [B] long.

        Returns:
            The memory of the next step.
        """
        explored = cycle.explored + slow
        estimates = torch.cat((cycle.estimates[:, 1:], estimate[:, None].double()), dim=1)
        estimates = torch.where(slow[:, None], estimates, cycle.estimates)
        agree = (explored >= self.stability) & (estimates.std(1, correction=0) < self.deviation)
        length = torch.where(slow & agree & (cycle.length == 0), estimate, cycle.length)
        mean = estimates.mean(1).long().clamp_min(1)
        length = torch.where((explored >= self.exploration) & (length == 0), mean, length)
        return Cycle(cycle.window_stop, cycle.first, explored, estimates, length)
