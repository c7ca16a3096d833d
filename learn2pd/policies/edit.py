"""Editing (LLaDA2.1, arXiv 2602.08676): a committed token is overwritten where another one is proposed with certainty.

The rule: the frame is that of `checked_block.py`. A step overwrites every committed token of the window, other than the
caller's, whose position now proposes another token with

    confidence > editing_threshold.

Deviations from the authors' code: none. The released models were trained to edit. The paper also edits blocks that were
left already; the released code does not, and neither does this file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.errors import check_probability
from learn2pd.policies.checked_block import Checked, CheckedBlockPolicy
from learn2pd.types import DecodeState, Prediction


class EditPolicy(CheckedBlockPolicy):
    """Editing.

    Args:
        threshold: The confidence above which a mask is committed, 0 to 1.
        editing_threshold: The confidence above which a token is overwritten, 0 to 1.
        max_post_steps: The most steps that a window has without a mask, at least 0.
        tokens_per_step: The positions that a step commits at least, 1 or more.

    Raises:
        ValueError: A number is out of range.
    """

    name = "edit"

    def __init__(
        self,
        threshold: float = 0.95,
        editing_threshold: float = 0.9,
        max_post_steps: int = 16,
        tokens_per_step: int = 1,
    ) -> None:
        super().__init__(threshold, max_post_steps, tokens_per_step)
        self.editing_threshold = check_probability("editing_threshold", editing_threshold)

    def revise(
        self, prediction: Prediction, standing: Tensor, state: DecodeState, memory: Checked
    ) -> tuple[Tensor, Tensor]:
        differs = standing & (prediction.tokens != state.canvas)
        return differs & (prediction.confidence > self.editing_threshold), torch.zeros_like(standing)
