"""AdaBlock (arXiv 2509.26432): blocks that end where a step of the answer ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.schedulers.blocks import at_least, leftmost_mask
from learn2pd.tensors import is_among
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window

SEARCH_SHARE = 0.25  # of the canvas in which AdaBlock looks for a delimiter, as in the authors' code


class AdaBlockScheduler:
    """AdaBlock (arXiv 2509.26432): a block ends where the model proposes a delimiter, for example a new line.

    The forward that opens a block decides its length: among the proposals of the next quarter of the canvas that are delimiters the most
    confident is taken, and if its confidence is at least `delimiter_threshold` the block ends with it; else it has `block_length`.
    So a block can be longer than `block_length`.

    Deviations from the authors' code: none. (The paper scales the quarter by the current position; their code and this one do not.)

    Args:
        delimiter_ids: token ids.
        block_length: tokens of a block without a delimiter.
        delimiter_threshold: confidence, 0 to 1; the authors use 0.3 for LLaDA, 0.5 for Dream.
    """

    name, alignment, slides = "adablock", "semantic", False

    def __init__(self, delimiter_ids: Sequence[int], block_length: int = 32, delimiter_threshold: float = 0.3) -> None:
        self.block_length = at_least(1, "block_length", block_length)
        if not delimiter_ids:
            raise ValueError("delimiter_ids is empty: expected at least one token id")
        if not 0 <= delimiter_threshold <= 1:
            raise ValueError(f"delimiter_threshold={delimiter_threshold}: expected a confidence from 0 to 1")
        self.delimiter_ids, self.delimiter_threshold = tuple(delimiter_ids), delimiter_threshold

    def check_model(self, spec: ModelSpec) -> None:
        wrong = [token for token in self.delimiter_ids if not 0 <= token < spec.vocab_size]
        if wrong:
            raise UserError(f"delimiter_ids: {wrong[0]} is outside the vocabulary of {spec.name}, which has ids 0 to {spec.vocab_size - 1}")

    def propose(self, state: DecodeState) -> Window:
        stays = (state.window.mask(state.gen_length) & state.masked).any(1)
        start = torch.where(stays, state.window.start, leftmost_mask(state))
        stop = torch.where(stays, state.window.stop, start + max(self.block_length, self._search(state)))
        return Window(start, torch.minimum(stop, state.end))

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window:
        opens = (state.masked | ~window.mask(state.gen_length)).all(1)  # every step commits, so an older block has a position without a mask
        searched = Window(window.start, torch.minimum(window.start + self._search(state), window.stop))
        place, found = self._block_end(state, searched, prediction)
        stop = torch.where(found, place, window.start + self.block_length)
        return Window(window.start, torch.where(opens, torch.minimum(stop, window.stop), window.stop))

    def _block_end(self, state: DecodeState, searched: Window, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """Where the block that opens ends [B], and whether anything says so [B] bool."""
        delimiter = searched.mask(state.gen_length) & prediction.valid & is_among(prediction.tokens, self.delimiter_ids)
        confidence, place = prediction.confidence.masked_fill(~delimiter, -1.0).max(1)
        return place + 1, confidence >= self.delimiter_threshold

    def _search(self, state: DecodeState) -> int:
        return int(SEARCH_SHARE * state.gen_length)
