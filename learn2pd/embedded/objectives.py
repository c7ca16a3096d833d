"""Training objectives of the embedded models: each turns rows of token ids into what the network sees and what is scored.

| objective | paper | what one row becomes |
|---|---|---|
| `MaskedDiffusion` | LLaDA, arXiv 2502.09992, equation 3 | every answer token is masked with probability t ~ U(0, 1); weight 1/t |
| `BlockDiffusion` | BD3-LM, arXiv 2503.09573 | a clean copy and a noised copy; a noised block sees the clean blocks before it and itself |
| `NextToken` | - | the token after each position |

`BlockDiffusion` with blocks of one token asks for each answer token given exactly the tokens before it. That is the order in which a small
network learns to copy and to count soonest, so the embedded dLLM begins with it (`causal_steps`).

Deviation from BD3-LM: a noised block of m answer tokens has k ~ U{1..m} of them masked, with weight m/k, where the paper draws a ratio. The
expectation is the same likelihood bound and no block is left without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

SMALLEST_RATIO = 1e-3  # LLaDA's epsilon: it bounds the weight 1/t


@dataclass(frozen=True)
class Row:
    """One training sequence: a prompt, an answer, and end-of-text up to `length` tokens in all."""

    prompt: list[int]
    answer: list[int]
    length: int


class MicroBatch(NamedTuple):  # a tuple, because Lightning moves tuples between devices and not frozen dataclasses
    """What the network sees and what is scored; R rows, Q columns, N scored positions in row-major order."""

    inputs: Tensor  # [R, Q] long
    positions: Tensor  # [R, Q] long
    attention: Tensor | None  # [R, Q, Q] bool, True where a column (second) sees another (third); None: everywhere
    scored: Tensor  # [R, Q] bool
    targets: Tensor  # [N] long
    weights: Tensor  # [N] float
    tokens: int  # what the weights add up to in expectation: the number of tokens that the loss is a mean over


class Objective(Protocol):
    """Turns rows into a micro-batch; the same arguments give the same micro-batch."""

    def __call__(self, rows: Sequence[Row], quantiles: Tensor, generator: torch.Generator) -> MicroBatch:
        """Args:
        rows: of about equal length.
        quantiles: [R] in [0, 1), spread evenly over all rows of the batch; decides how much of a row is masked.
        generator: decides which positions are.
        """


def canvas(rows: Sequence[Row], eot_id: int) -> tuple[Tensor, Tensor]:
    """The rows side by side.

    Returns:
        tokens [R, T] long, shorter rows filled with end-of-text; prompt lengths [R] long.
    """
    tokens = torch.full((len(rows), max(row.length for row in rows)), eot_id)
    for index, row in enumerate(rows):
        tokens[index, : len(row.prompt) + len(row.answer)] = torch.tensor(row.prompt + row.answer)
    return tokens, torch.tensor([len(row.prompt) for row in rows])


class MaskedDiffusion:
    """LLaDA's objective. The prompt is never masked; end-of-text fills the canvas and is masked like any answer token."""

    def __init__(self, mask_id: int, eot_id: int) -> None:
        self.mask_id = mask_id
        self.eot_id = eot_id

    def __call__(self, rows: Sequence[Row], quantiles: Tensor, generator: torch.Generator) -> MicroBatch:
        tokens, prompts = canvas(rows, self.eot_id)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        answer = positions >= prompts[:, None]
        ratio = ((1 - SMALLEST_RATIO) * quantiles + SMALLEST_RATIO)[:, None]
        masked = (torch.rand(tokens.shape, generator=generator) < ratio) & answer
        weights = (1 / ratio).expand_as(tokens)[masked]
        inputs = torch.where(masked, self.mask_id, tokens)
        return MicroBatch(inputs, positions, None, masked, tokens[masked], weights, int(answer.sum()))


class BlockDiffusion:
    """BD3-LM's objective: block-causal attention, each block noised on its own.

    Args:
        block_length: tokens a block.
        alignment: `prompt` counts blocks from the end of the prompt, which is one block itself; `grid` counts them from the first token.
    """

    def __init__(self, mask_id: int, eot_id: int, block_length: int, alignment: str) -> None:
        self.mask_id = mask_id
        self.eot_id = eot_id
        self.block_length = block_length
        self.alignment = alignment

    def __call__(self, rows: Sequence[Row], quantiles: Tensor, generator: torch.Generator) -> MicroBatch:
        tokens, prompts = canvas(rows, self.eot_id)
        length = tokens.shape[1]
        positions = torch.arange(length).expand_as(tokens)
        blocks = self._blocks(positions, prompts[:, None])
        first = int(prompts.min())
        if self.alignment == "grid":
            first -= first % self.block_length
        noised = blocks[:, first:]
        answer = positions[:, first:] >= prompts[:, None]
        masked, weights = _mask_blocks(noised, answer, generator)
        inputs = torch.cat((tokens, torch.where(masked, self.mask_id, tokens[:, first:])), dim=1)
        scored = torch.cat((torch.zeros_like(tokens, dtype=torch.bool), masked), dim=1)
        return MicroBatch(
            inputs,
            torch.cat((positions, positions[:, first:]), dim=1),
            two_copies(blocks, noised),
            scored,
            tokens[:, first:][masked],
            weights[masked],
            int(answer.sum()),
        )

    def _blocks(self, positions: Tensor, prompts: Tensor) -> Tensor:
        if self.alignment == "grid":
            return positions // self.block_length
        return torch.where(
            positions < prompts, 0, 1 + (positions - prompts).div(self.block_length, rounding_mode="floor")
        )


def two_copies(clean: Tensor, noised: Tensor) -> Tensor:
    """Who sees whom when a clean and a noised copy of a sequence stand side by side.

    Args:
        clean: [R, T] number of each position's block.
        noised: [R, S] the same for the noised copy.

    Returns:
        [R, T + S, T + S] bool: a clean column sees clean blocks up to its own; a noised one clean blocks before its own, and its own noised one.
    """
    to_clean = torch.cat((clean[:, :, None] >= clean[:, None, :], noised[:, :, None] > clean[:, None, :]), dim=1)
    among_noised = noised[:, :, None] == noised[:, None, :]
    unseen = torch.zeros(clean.shape[0], clean.shape[1], noised.shape[1], dtype=torch.bool)
    return torch.cat((to_clean, torch.cat((unseen, among_noised), dim=1)), dim=2)


def _mask_blocks(blocks: Tensor, answer: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """In each block, k ~ U{1..m} of its m answer positions.

    Returns:
        masked [R, S] bool, weights m/k [R, S].
    """
    same = (blocks[:, :, None] == blocks[:, None, :]) & answer[:, None, :]  # [R, S, S]
    size = same.sum(-1).clamp(min=1)  # m, at every position of the block
    share = torch.rand(len(blocks), int(blocks.max()) + 1, generator=generator).gather(1, blocks)  # one number a block
    count = 1 + (share * size).long().clamp(max=size - 1)
    draw = torch.rand(blocks.shape, generator=generator)
    rank = (same & (draw[:, None, :] < draw[:, :, None])).sum(-1)
    return answer & (rank < count), size / count


class NextToken:
    """Next-token prediction of the answer and its first end-of-text, for an autoregressive model."""

    def __init__(self, eot_id: int) -> None:
        self.eot_id = eot_id

    def __call__(self, rows: Sequence[Row], quantiles: Tensor, generator: torch.Generator) -> MicroBatch:
        tokens, prompts = canvas(rows, self.eot_id)
        ends = torch.tensor([len(row.prompt) + len(row.answer) for row in rows])[:, None]
        positions = torch.arange(tokens.shape[1] - 1).expand(len(rows), -1)
        scored = (positions + 1 >= prompts[:, None]) & (positions + 1 <= ends)
        targets = tokens[:, 1:][scored]
        return MicroBatch(tokens[:, :-1], positions, None, scored, targets, torch.ones(len(targets)), len(targets))
