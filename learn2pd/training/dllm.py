"""Train the embedded dLLM: LLaDA's masked-diffusion objective on the built-in tasks.

Objective (arXiv 2502.09992, equation 3): a mask ratio t ~ U(0, 1) per sample, every answer token masked with probability t, cross
entropy of the masked ones weighted by 1/t. The prompt is never masked; the canvas after the answer is filled with end-of-text, so the
model learns to stop. t is stratified over the batch, which keeps its distribution and lowers the variance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.models.llada import LLaDAModelLM
from learn2pd.training.canvases import CanvasBatch
from learn2pd.training.running import LanguageTraining, Schedule

SMALLEST_RATIO = 1e-3  # LLaDA's epsilon: bounds the weight 1/t


def mask_canvas(batch: CanvasBatch, mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise a batch.

    Returns:
        inputs [B, T] with masks, masked [B, T] bool, weight [B, 1] = 1/t.
    """
    rows, length = batch.tokens.shape
    generator = torch.Generator().manual_seed(batch.seed)
    ratio = (torch.rand((), generator=generator) + torch.randperm(rows, generator=generator) / rows) % 1.0
    ratio = ((1 - SMALLEST_RATIO) * ratio + SMALLEST_RATIO)[:, None]
    masked = (torch.rand(rows, length, generator=generator) < ratio).to(batch.tokens.device) & ~batch.prompt_mask
    return torch.where(masked, mask_id, batch.tokens), masked, (1 / ratio).to(batch.tokens.device)


class DiffusionTraining(LanguageTraining):
    """Args: model, trained in place; schedule."""

    model: LLaDAModelLM

    def __init__(self, model: LLaDAModelLM, schedule: Schedule) -> None:
        super().__init__(model, model.model.transformer.blocks, schedule)

    def loss(self, batch: CanvasBatch) -> tuple[Tensor, Tensor]:
        """Mean weighted cross entropy per canvas token, and the share of masked tokens predicted right."""
        inputs, masked, weight = mask_canvas(batch, self.model.config.mask_token_id)
        logits = self.model.score(self.model.hidden(inputs)[masked]).float()  # [masked, V]
        targets = batch.tokens[masked]
        entropy = functional.cross_entropy(logits, targets, reduction="none")
        loss = (entropy * weight.expand_as(masked)[masked]).sum() / (~batch.prompt_mask).sum()
        return loss, (logits.argmax(-1) == targets).float().mean()
