"""Prophet (arXiv 2508.19982): where the answer is certain, everything that is left is decoded at once.

The rule: the policy commits as the fixed quota does (`fixed.py`). In step s of `steps`, counted from 1, it also looks
at the five positions from `answer_start` on, masked or not. With the mean over them of

    logit of the most probable token - logit of the second,

it commits every masked position of the canvas at once where this mean reaches the bar

    early, where s / steps < 0.33;    middle, where s / steps < 0.67;    late after that.

A position that may hold only one id has no second token and does not count in the mean.

A cache that scores the window alone shows the policy the window alone, so that less is decoded at once.

Deviation from the authors' code: none. Their caller says where the answer begins; here the option does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learn2pd.errors import check_not_negative
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction

LOOKED_AT = 5  # positions of the answer
EARLY_UNTIL, MIDDLE_UNTIL = 0.33, 0.67  # shares of the steps


class ProphetPolicy(Policy):
    """Prophet.

    Args:
        early: The bar in the first third of the steps, 0 or more.
        middle: The bar in the second third, 0 or more.
        late: The bar in the last third, 0 or more.
        answer_start: Where the answer begins, as a share of the canvas from 0 to below 1.
        steps: The steps for the whole canvas; None commits one token a step.

    Raises:
        ValueError: A number is out of range.
    """

    name = "prophet"
    needs = frozenset({"logit_margin"})
    scores_committed = True
    looks_ahead = True

    def __init__(
        self,
        early: float = 7.5,
        middle: float = 5.0,
        late: float = 2.5,
        answer_start: float = 0.0,
        steps: int | None = None,
    ) -> None:
        if not 0 <= answer_start < 1:
            raise ValueError(f"answer_start={answer_start}: expected a share from 0 to below 1")
        self.early = check_not_negative("early", early)
        self.middle = check_not_negative("middle", middle)
        self.late = check_not_negative("late", late)
        self.answer_start = answer_start
        self.steps = steps
        self.fixed = FixedPolicy(steps)

    def start(self, state: DecodeState, spec: ModelSpec) -> Any:
        return self.fixed.start(state, spec)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Any) -> Commit:
        commit = self.fixed.select(prediction, eligible, state, memory)
        first = int(self.answer_start * state.gen_length)
        margin = prediction.extra("logit_margin")[:, first : first + LOOKED_AT]
        # the margin of a position that may hold only one id is infinite and says nothing of the answer
        counted = prediction.valid[:, first : first + LOOKED_AT] & margin.isfinite()
        mean = margin.masked_fill(~counted, 0).sum(1) / counted.sum(1)  # NaN, which reaches no bar, where none counts
        certain = (mean >= self.bar(state))[:, None]
        return Commit(commit.mask | (state.masked & prediction.valid & certain), memory=commit.memory)

    def bar(self, state: DecodeState) -> Tensor:
        """Return the bar of this step.

        Args:
            state: The state before the commit.

        Returns:
            [B] float.
        """
        progress = (state.step + 1).double() / (self.steps or state.gen_length)
        bar = torch.where(progress < MIDDLE_UNTIL, self.middle, self.late)
        return torch.where(progress < EARLY_UNTIL, self.early, bar)
