"""KLASS (arXiv 2511.05664): a step commits what is confident and has a distribution that no longer changes.

The rule: let p_t be the distribution of a masked position in step t. The policy commits every eligible position with

    confidence > threshold,  and  KL(p_s || p_{s-1}) < kl_threshold  in each of the last `history` steps s.

It does not do so in the first history - 1 steps of a block. Where no position is ready, it commits the most confident
ones, as many as the fixed quota of `steps` asks for (`fixed.py`). The divergences are measured at every masked position
of the canvas, so that those of a block are known when it opens.

The last distributions are a float32 tensor of canvas x vocabulary for each row: 130 MB for 256 tokens of LLaDA's
vocabulary.

Deviations from the authors' code:

- With fewer steps than tokens, their quota may exceed the masks that are left, so that decoded tokens are overwritten,
  and a block may end with masks in the answer. Neither happens here.
- Their choice `entropy` ranks the positions by entropy with the wrong sign, so that the most uncertain ones come first.
  That choice belongs to their fixed quota, which is `fixed` here and has the right sign.
- Their divergences are float64 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.errors import check_at_least, check_not_negative, check_probability
from learn2pd.policies.fixed import FixedPolicy, Quota
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory

STRATEGIES = ("all", "max_conf", "min_kl")
SMALLEST = 1e-12  # added to the probabilities before their logarithm


@dataclass(frozen=True)
class Divergences(RowMemory):
    """The last distributions and how much they changed.

    Attributes:
        probability: [B, G, V] float32, the last distribution of each position, 0 before the first one.
        divergence: [B, G, H] float32, the last H divergences, infinite before the first ones.
        stop: [B] long, the end of the last window.
        step: [B] long, the number of the last step in its block, counted from 0.
        quota: The memory of the fixed quota.
    """

    probability: Tensor
    divergence: Tensor
    stop: Tensor
    step: Tensor
    quota: Quota


class KlassPolicy(Policy):
    """KLASS.

    Args:
        threshold: The confidence above which a position may be ready, 0 to 1. The authors use 0.6 to 0.9 by task.
        kl_threshold: The divergence below which a distribution counts as settled, 0 or more.
        history: The number of divergences that must be below it, at least 1.
        strategy: What is committed of the ready positions: `all`, or only the one with the highest confidence
            (`max_conf`) or with the lowest divergence (`min_kl`).
        steps: The steps for the whole canvas that the quota is made of; None commits one token where nothing is ready.

    Raises:
        ValueError: A number is out of range, or the strategy is unknown.
    """

    name = "klass"
    needs = frozenset({"logits"})
    looks_ahead = True

    def __init__(
        self,
        threshold: float = 0.6,
        kl_threshold: float = 0.015,
        history: int = 2,
        strategy: str = "all",
        steps: int | None = None,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy={strategy!r}: expected {', '.join(STRATEGIES)}")
        self.threshold = check_probability("threshold", threshold)
        self.kl_threshold = check_not_negative("kl_threshold", kl_threshold)
        self.history = check_at_least(1, "history", history)
        self.strategy = strategy
        self.steps = steps
        self.fixed = FixedPolicy(steps)

    def start(self, state: DecodeState, spec: ModelSpec) -> Divergences:
        rows, width = state.masked.shape
        device = state.masked.device
        zeros = torch.zeros_like(state.end)
        return Divergences(
            probability=torch.zeros(rows, width, spec.vocab_size, device=device),
            divergence=torch.full((rows, width, self.history), torch.inf, device=device),
            stop=zeros,
            step=zeros,
            quota=self.fixed.start(state, spec),
        )

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Divergences) -> Commit:
        probability, divergence = self.measure(prediction, state, memory)
        step = torch.where(state.window.start >= memory.stop, 0, memory.step + 1)
        settled = (divergence < self.kl_threshold).all(-1) & (step >= self.history - 1)[:, None]
        ready = eligible & (prediction.confidence > self.threshold) & settled
        if self.strategy == "max_conf":
            ready = most_confident(prediction.confidence, ready)
        if self.strategy == "min_kl":
            ready = most_confident(-divergence[..., -1], ready)
        quota = self.fixed.select(prediction, eligible, state, memory.quota)
        forced = quota.mask & ~ready.any(1, keepdim=True)
        own = memory.quota if quota.memory is None else quota.memory
        memory = Divergences(probability, divergence, state.window.stop, step, own)
        return Commit(ready | forced, forced=forced, memory=memory)

    def measure(self, prediction: Prediction, state: DecodeState, memory: Divergences) -> tuple[Tensor, Tensor]:
        """Compare the distributions of all scored masks with those of the step before.

        Args:
            prediction: The proposals of this step.
            state: The state before the commit.
            memory: The memory of the last step.

        Returns:
            `probability` and `divergence` of the next memory.
        """
        scored = state.masked & prediction.valid
        probability = memory.probability.clone()
        divergence = memory.divergence.clone()
        for part in prediction.logits_parts():
            at = part.rows, part.positions
            now = part.logits[:, : probability.shape[2]].float().softmax(-1)
            before = probability[at]
            change = (now * ((now + SMALLEST).log() - (before + SMALLEST).log())).sum(-1, keepdim=True)
            asked = part.of(scored)[:, None]
            divergence[at] = torch.where(asked, torch.cat((divergence[at][:, 1:], change), dim=1), divergence[at])
            probability[at] = torch.where(asked, now, before)
        return probability, divergence
