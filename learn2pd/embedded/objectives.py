"""Training objectives of the embedded models.

An objective turns rows of token ids into what the network sees and what is scored.

`MaskedDiffusion` (LLaDA, arXiv 2502.09992, equation 3)
    Every answer token is masked with probability t ~ U(0, 1), and its loss has the weight 1/t.
`BlockDiffusion` (BD3-LM, arXiv 2503.09573)
    A row becomes a clean copy and a noised copy. A noised block sees the clean blocks before it, and itself.
`NextToken`
    Every position is asked for the token after it.

Deviation from BD3-LM: the paper draws a ratio for each noised block. Here a noised block of m answer tokens has
k ~ U{1..m} of them masked, with weight m/k. The expectation is the same likelihood bound, and every block with an
answer token has a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

SMALLEST_RATIO = 1e-3  # LLaDA's epsilon: it bounds the weight 1/t


@dataclass(frozen=True)
class Row:
    """One training sequence.

    Attributes:
        prompt: Token ids of the prompt.
        answer: Token ids of the answer.
        length: The number of tokens in all; end-of-text fills the row behind the answer.
    """

    prompt: list[int]
    answer: list[int]
    length: int


# This is a tuple because Lightning moves tuples between devices, but not frozen dataclasses.
class MicroBatch(NamedTuple):
    """What the network sees and what is scored: R rows, Q columns, and N scored positions in row-major order.

    Attributes:
        inputs: [R, Q] long, token ids.
        positions: [R, Q] long, the position of each column in its sequence.
        attention: [R, Q, Q] bool, True where a column (second dimension) sees another one (third dimension), or [R, Q]
            bool, True where every column sees a column. With None every column sees every other.
        scored: [R, Q] bool, True where the output is scored.
        targets: [N] long, the right token ids.
        weights: [N] float, the weights of the losses.
        tokens: The number of tokens that the loss is a mean over, which the weights add up to in expectation.
    """

    inputs: Tensor
    positions: Tensor
    attention: Tensor | None
    scored: Tensor
    targets: Tensor
    weights: Tensor
    tokens: int


class Objective(Protocol):
    """Turns rows into a micro-batch; the same arguments give the same micro-batch.

    What is asked of a row does not depend on the other rows of its micro-batch.
    """

    def __call__(self, rows: Sequence[Row], quantiles: Tensor, generator: torch.Generator) -> MicroBatch:
        """Turn rows into a micro-batch.

        Args:
            rows: Rows of about equal length.
            quantiles: [R] float in [0, 1), spread evenly over all rows of the batch. They decide how much of each row
                is masked.
            generator: The generator that decides which positions are masked. Each row in its turn draws from it.
        """


class Canvas(NamedTuple):
    """Rows of different lengths in one tensor.

    Attributes:
        tokens: [R, T] long, prompts and answers; end-of-text fills the rows and the columns behind them.
        positions: [R, T] long, 0..T-1 in each row.
        inside: [R, T] bool, True where a column belongs to its row.
        answer: [R, T] bool, True where a column belongs to its row and stands behind the prompt.
    """

    tokens: Tensor
    positions: Tensor
    inside: Tensor
    answer: Tensor


def canvas(rows: Sequence[Row], eot_id: int) -> Canvas:
    """Put rows of different lengths into one tensor.

    Args:
        rows: The rows.
        eot_id: The id of end-of-text.
    """
    longest = max(row.length for row in rows)
    tokens = torch.full((len(rows), longest), eot_id)
    for index, row in enumerate(rows):
        tokens[index, : len(row.prompt) + len(row.answer)] = torch.tensor(row.prompt + row.answer)
    positions = torch.arange(longest).expand_as(tokens)
    inside = positions < torch.tensor([row.length for row in rows])[:, None]
    return Canvas(tokens, positions, inside, inside & (positions >= _prompts(rows)))


def _prompts(rows: Sequence[Row]) -> Tensor:
    """Return the lengths of the prompts, [R, 1] long."""
    return torch.tensor([len(row.prompt) for row in rows])[:, None]


def draws(rows: Sequence[Row], generator: torch.Generator) -> Tensor:
    """Draw two random numbers for each position of each row.

    Args:
        rows: The rows.
        generator: The generator, from which each row in its turn draws.

    Returns:
        [2, R, T] float in [0, 1); ones behind the end of a row.
    """
    drawn = torch.ones(2, len(rows), max(row.length for row in rows))
    for index, row in enumerate(rows):
        drawn[:, index, : row.length] = torch.rand(2, row.length, generator=generator)
    return drawn


class MaskedDiffusion:
    """LLaDA's objective.

    The prompt is never masked. End-of-text fills the canvas and is masked like any answer token.

    Args:
        mask_id: The id of the mask token.
        eot_id: The id of end-of-text.
    """

    def __init__(self, mask_id: int, eot_id: int) -> None:
        self.mask_id = mask_id
        self.eot_id = eot_id

    def __call__(self, rows: Sequence[Row], quantiles: Tensor, generator: torch.Generator) -> MicroBatch:
        tokens, positions, inside, answer = canvas(rows, self.eot_id)
        ratio = ((1 - SMALLEST_RATIO) * quantiles + SMALLEST_RATIO)[:, None]
        masked = (draws(rows, generator)[0] < ratio) & answer
        weights = (1 / ratio).expand_as(tokens)[masked]
        inputs = torch.where(masked, self.mask_id, tokens)
        seen = None if inside.all() else inside
        return MicroBatch(inputs, positions, seen, masked, tokens[masked], weights, int(answer.sum()))


class BlockDiffusion:
    """BD3-LM's objective: attention is block-causal, and each block is noised on its own.

    End-of-text fills a row up to the end of its last block.

    Args:
        mask_id: The id of the mask token.
        eot_id: The id of end-of-text.
        block_length: The number of tokens of a block.
        alignment: `prompt` counts blocks from the end of the prompt, which is one block itself. `grid` counts them from
            the first token of the prompt.
    """

    def __init__(self, mask_id: int, eot_id: int, block_length: int, alignment: str) -> None:
        self.mask_id = mask_id
        self.eot_id = eot_id
        self.block_length = block_length
        self.alignment = alignment

    def __call__(self, rows: Sequence[Row], quantiles: Tensor, generator: torch.Generator) -> MicroBatch:
        rows = [replace(row, length=row.length + self._behind(row)) for row in rows]
        tokens, positions, inside, answer = canvas(rows, self.eot_id)
        prompts = _prompts(rows)
        blocks = self._blocks(positions, prompts)
        first = int(prompts.min())
        if self.alignment == "grid":
            first -= first % self.block_length
        noised = blocks[:, first:]
        masked, weights = _mask_blocks(noised, answer[:, first:], draws(rows, generator)[:, :, first:])
        inputs = torch.cat((tokens, torch.where(masked, self.mask_id, tokens[:, first:])), dim=1)
        scored = torch.cat((torch.zeros_like(tokens, dtype=torch.bool), masked), dim=1)
        return MicroBatch(
            inputs,
            torch.cat((positions, positions[:, first:]), dim=1),
            two_copies(blocks, noised) & torch.cat((inside, inside[:, first:]), dim=1)[:, None, :],
            scored,
            tokens[:, first:][masked],
            weights[masked],
            int(answer.sum()),
        )

    def _behind(self, row: Row) -> int:
        """Return the number of positions of the last block behind the end of a row."""
        return -(row.length - (len(row.prompt) if self.alignment == "prompt" else 0)) % self.block_length

    def _blocks(self, positions: Tensor, prompts: Tensor) -> Tensor:
        """Return the number of each position's block, [R, T] long."""
        if self.alignment == "grid":
            return positions // self.block_length
        in_answer = 1 + (positions - prompts).div(self.block_length, rounding_mode="floor")
        return torch.where(positions < prompts, 0, in_answer)


def two_copies(clean: Tensor, noised: Tensor) -> Tensor:
    """Return the attention between a clean and a noised copy of a sequence that stand side by side.

    Args:
        clean: [R, T] long, the number of each position's block.
        noised: [R, S] long, the same for the noised copy.

    Returns:
        [R, T + S, T + S] bool. A clean column sees the clean blocks up to its own. A noised column sees the clean
        blocks before its own, and its own noised block.
    """
    to_clean = torch.cat((clean[:, :, None] >= clean[:, None, :], noised[:, :, None] > clean[:, None, :]), dim=1)
    among_noised = noised[:, :, None] == noised[:, None, :]
    unseen = torch.zeros(clean.shape[0], clean.shape[1], noised.shape[1], dtype=torch.bool)
    to_noised = torch.cat((unseen, among_noised), dim=1)
    return torch.cat((to_clean, to_noised), dim=2)


def _mask_blocks(blocks: Tensor, answer: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Mask k ~ U{1..m} of the m answer positions of each block.

    Args:
        blocks: [R, S] long, the number of each position's block.
        answer: [R, S] bool, the answer positions.
        drawn: [2, R, S] float, two random numbers for each position.

    Returns:
        The masked positions [R, S] bool, and their weights m/k [R, S].
    """
    same = (blocks[:, :, None] == blocks[:, None, :]) & answer[:, None, :]  # [R, S, S]
    size = same.sum(-1).clamp(min=1)  # m, at every position of the block
    first = same.long().argmax(-1)  # the block's first answer position, whose first number decides k
    count = 1 + (drawn[0].gather(1, first) * size).long().clamp(max=size - 1)
    rank = (same & (drawn[1][:, None, :] < drawn[1][:, :, None])).sum(-1)
    return answer & (rank < count), size / count


class NextToken:
    """Next-token prediction of the answer and its first end-of-text, for an autoregressive model.

    Args:
        eot_id: The id of end-of-text.
    """

    def __init__(self, eot_id: int) -> None:
        self.eot_id = eot_id

    def __call__(self, rows: Sequence[Row], quantiles: Tensor, generator: torch.Generator) -> MicroBatch:
        tokens, positions, _, answer = canvas(rows, self.eot_id)
        ends = torch.tensor([len(row.prompt) + len(row.answer) for row in rows])[:, None]
        scored = (answer & (positions <= ends))[:, 1:]
        targets = tokens[:, 1:][scored]
        ones = torch.ones(len(targets))
        return MicroBatch(tokens[:, :-1], positions[:, :-1], None, scored, targets, ones, len(targets))
