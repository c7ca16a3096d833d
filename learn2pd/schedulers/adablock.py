"""AdaBlock (arXiv 2509.26432): a block ends where the model proposes a delimiter, for example a new line.

The rule: the forward that opens a block decides the length of the block. The scheduler looks at the proposals of the
next quarter of the canvas, and among those that are delimiters it takes the most confident one. If

    confidence >= delimiter_threshold,

the block ends with this delimiter. Otherwise the block has `block_length` tokens. A block that ends with a delimiter
can be longer than `block_length`.

Deviations from the authors' code: none. The paper scales the quarter by the current position; the authors' code does
not, and this code does not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learn2pd.errors import UserError, check_at_least, check_probability
from learn2pd.roles import Scheduler
from learn2pd.tensors import is_among
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method

SEARCH_SHARE = 0.25  # share of the canvas in which AdaBlock looks for a delimiter, as in the authors' code


class SemanticBlocks(Scheduler):
    """Blocks whose end is decided by the forward that opens them. A subclass says where a step of the answer ends."""

    alignment = "semantic"

    def propose(self, state: DecodeState, memory: Any) -> Window:
        stays = (state.window.mask(state.gen_length) & state.masked).any(1)
        start = torch.where(stays, state.window.start, state.leftmost_mask)
        stop = torch.where(stays, state.window.stop, start + max(self.block_length, self.searched_tokens(state)))
        return Window(start, torch.minimum(stop, state.end))

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction, memory: Any) -> Window:
        # A block opens in this step where no policy has committed one of its positions yet: every step commits at least
        # one. Positions that the caller gave were never masks and say nothing about the age of a block.
        opens = (state.masked | state.given | ~window.mask(state.gen_length)).all(1)
        searched = Window(window.start, torch.minimum(window.start + self.searched_tokens(state), window.stop))
        place, ends = self.block_end(state, searched, prediction, memory)
        stop = torch.where(ends, place, window.start + self.block_length)
        return replace(window, stop=torch.where(opens, torch.minimum(stop, window.stop), window.stop))

    def block_end(
        self, state: DecodeState, searched: Window, prediction: Prediction, memory: Any
    ) -> tuple[Tensor, Tensor]:
        """Decide where the block that opens ends.

        Args:
            state: The state before the commit.
            searched: The positions in which the block may end.
            prediction: The proposals of this step.
            memory: The memory that `start` returned.

        Returns:
            The position behind the end of the block, [B] long, and whether the block has such an end, [B] bool. A block
            without one has `block_length` tokens.
        """
        raise NotImplementedError

    def searched_tokens(self, state: DecodeState) -> int:
        """Return the number of tokens, from the start of a block, in which the block may end."""
        return int(SEARCH_SHARE * state.gen_length)


class AdaBlockScheduler(SemanticBlocks):
    """AdaBlock.

    Args:
        delimiter_ids: The token ids of the delimiters, at least one.
        block_length: The tokens of a block in which no delimiter was proposed.
        delimiter_threshold: The least confidence of a delimiter, 0 to 1. The authors use 0.3 for LLaDA and 0.5 for
            Dream.

    Raises:
        ValueError: No delimiter is given, or a number is out of range.
    """

    name = "adablock"

    def __init__(self, delimiter_ids: Sequence[int], block_length: int = 32, delimiter_threshold: float = 0.3) -> None:
        if not delimiter_ids:
            raise ValueError("delimiter_ids is empty: expected at least one token id")
        self.delimiter_ids = tuple(delimiter_ids)
        self.block_length = check_at_least(1, "block_length", block_length)
        self.delimiter_threshold = check_probability("delimiter_threshold", delimiter_threshold)

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        outside = [token for token in self.delimiter_ids if not 0 <= token < spec.vocab_size]
        if outside:
            raise UserError(
                f"delimiter_ids: {outside[0]} is outside the vocabulary of {spec.name}, "
                f"which has ids 0 to {spec.vocab_size - 1}"
            )

    def block_end(
        self, state: DecodeState, searched: Window, prediction: Prediction, memory: None
    ) -> tuple[Tensor, Tensor]:
        # only masked positions have proposals of their own; an observer may ask for some at committed positions too
        proposed = searched.mask(state.gen_length) & prediction.valid & state.masked
        delimiter = proposed & is_among(prediction.tokens, self.delimiter_ids)
        confidence, place = prediction.confidence.masked_fill(~delimiter, -1.0).max(1)
        return place + 1, confidence >= self.delimiter_threshold
