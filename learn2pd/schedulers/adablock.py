"""AdaBlock (arXiv 2509.26432): a block ends where the model proposes a delimiter, for example a new line.

The forward that opens a block decides its length: among the proposals of the next quarter of the canvas that are delimiters the most
confident is taken, and if its confidence is at least `delimiter_threshold` the block ends with it; else it has `block_length`.
So a block can be longer than `block_length`.

Deviations from the authors' code: none. (The paper scales the quarter by the current position; their code and this one do not.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learn2pd.errors import UserError, check_at_least
from learn2pd.roles import Scheduler
from learn2pd.tensors import is_among
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method

SEARCH_SHARE = 0.25  # of the canvas in which AdaBlock looks for a delimiter, as in the authors' code


class SemanticBlocks(Scheduler):
    """Blocks whose end the opening forward decides. A subclass says where a step of the answer ends."""

    alignment = "semantic"

    def propose(self, state: DecodeState, memory: Any) -> Window:
        stays = (state.window.mask(state.gen_length) & state.masked).any(1)
        start = torch.where(stays, state.window.start, state.leftmost_mask)
        stop = torch.where(stays, state.window.stop, start + max(self.block_length, self.searched_tokens(state)))
        return Window(start, torch.minimum(stop, state.end))

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction, memory: Any) -> Window:
        # every step commits, so an older block has a position without a mask; what the caller gave says nothing
        opens = (state.masked | state.given | ~window.mask(state.gen_length)).all(1)
        searched = Window(window.start, torch.minimum(window.start + self.searched_tokens(state), window.stop))
        place, ends = self.block_end(state, searched, prediction, memory)
        stop = torch.where(ends, place, window.start + self.block_length)
        return Window(window.start, torch.where(opens, torch.minimum(stop, window.stop), window.stop))

    def block_end(
        self, state: DecodeState, searched: Window, prediction: Prediction, memory: Any
    ) -> tuple[Tensor, Tensor]:
        """Where the block that opens ends [B] long, and whether anything says so [B] bool."""
        raise NotImplementedError

    def searched_tokens(self, state: DecodeState) -> int:
        return int(SEARCH_SHARE * state.gen_length)


class AdaBlockScheduler(SemanticBlocks):
    """AdaBlock.

    Args:
        delimiter_ids: token ids.
        block_length: tokens of a block without a delimiter.
        delimiter_threshold: confidence, 0 to 1; the authors use 0.3 for LLaDA, 0.5 for Dream.

    Raises:
        ValueError: no delimiter, or a number out of range.
    """

    name = "adablock"

    def __init__(self, delimiter_ids: Sequence[int], block_length: int = 32, delimiter_threshold: float = 0.3) -> None:
        if not delimiter_ids:
            raise ValueError("delimiter_ids is empty: expected at least one token id")
        if not 0 <= delimiter_threshold <= 1:
            raise ValueError(f"delimiter_threshold={delimiter_threshold}: expected a confidence from 0 to 1")
        self.delimiter_ids = tuple(delimiter_ids)
        self.block_length = check_at_least(1, "block_length", block_length)
        self.delimiter_threshold = delimiter_threshold

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        outside = [token for token in self.delimiter_ids if not 0 <= token < spec.vocab_size]
        if outside:
            raise UserError(
                f"delimiter_ids: {outside[0]} is outside the vocabulary of {spec.name}, which has ids 0 to {spec.vocab_size - 1}"
            )

    def block_end(
        self, state: DecodeState, searched: Window, prediction: Prediction, memory: None
    ) -> tuple[Tensor, Tensor]:
        delimiter = searched.mask(state.gen_length) & prediction.valid & is_among(prediction.tokens, self.delimiter_ids)
        confidence, place = prediction.confidence.masked_fill(~delimiter, -1.0).max(1)
        return place + 1, confidence >= self.delimiter_threshold
