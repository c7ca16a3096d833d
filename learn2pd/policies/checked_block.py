"""The frame of LLaDA2.1's decoding (arXiv 2602.08676), which `edit` and `remask` share: a block is left when it is
settled.

The rule: a step commits every eligible position with

    confidence > threshold,

or the `tokens_per_step` most confident ones where fewer pass. In the same step it revises the tokens of the window that
earlier steps committed. The window stays open until a step has no mask to commit and revises nothing, but for at most
`max_post_steps` steps without a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.errors import check_at_least, check_probability
from learn2pd.roles import REVISIONS, Policy
from learn2pd.tensors import most_confident, revisable
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory


@dataclass(frozen=True)
class Checked(RowMemory):
    """The checks of every row.

    Attributes:
        start: [B] long, the start of the last window, -1 before the first one.
        checks: [B] long, the steps that the last window had without a mask.
        times_taken_back: [B, G] long, how often a position was taken back.
    """

    start: Tensor
    checks: Tensor
    times_taken_back: Tensor


class CheckedBlockPolicy(Policy):
    """The frame. A subclass says what is revised.

    Args:
        threshold: The confidence above which a position is committed, 0 to 1.
        max_post_steps: The most steps that a window has without a mask, at least 0.
        tokens_per_step: The positions that a step commits at least, 1 or more.

    Raises:
        ValueError: A number is out of range.
    """

    scores_committed = True
    revisions = REVISIONS

    def __init__(self, threshold: float, max_post_steps: int, tokens_per_step: int) -> None:
        self.threshold = check_probability("threshold", threshold)
        self.max_post_steps = check_at_least(0, "max_post_steps", max_post_steps)
        self.tokens_per_step = check_at_least(1, "tokens_per_step", tokens_per_step)

    def start(self, state: DecodeState, spec: ModelSpec) -> Checked:
        zeros = torch.zeros_like(state.end)
        return Checked(zeros - 1, zeros, torch.zeros_like(state.committed_at))

    def revise(
        self, prediction: Prediction, standing: Tensor, state: DecodeState, memory: Checked
    ) -> tuple[Tensor, Tensor]:
        """Decide what happens to the tokens that earlier steps committed.

        Args:
            prediction: The proposals of this step.
            standing: [B, G] bool, the positions that may be revised.
            state: The state before the commit.
            memory: The memory of the last step.

        Returns:
            The positions that are overwritten and those that are taken back, [B, G] bool each.
        """
        raise NotImplementedError

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Checked) -> Commit:
        accepted = eligible & (prediction.confidence > self.threshold)
        surest = most_confident(prediction.confidence, eligible, self.tokens_per_step)
        surest = surest & (accepted.sum(1, keepdim=True) < self.tokens_per_step)
        standing = revisable(state, self.revisions) & prediction.valid
        edited, revoked = self.revise(prediction, standing, state, memory)
        committed = accepted | surest
        earlier = torch.where(state.window.start == memory.start, memory.checks, 0)
        checks = earlier + ~eligible.any(1)
        open_masks = (state.masked & state.window.mask(state.gen_length) & ~committed) | revoked
        changed = (committed | edited | revoked).any(1)
        return Commit(
            committed | edited,
            revoke=revoked,
            forced=surest & ~accepted,
            stay=changed & ~open_masks.any(1) & (checks < self.max_post_steps),
            memory=Checked(state.window.start, checks, memory.times_taken_back + revoked),
        )
