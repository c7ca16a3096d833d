"""Where a policy may commit next: a scheduler opens a window per row.

`propose` runs before the forward, `resolve` after it, for methods whose window depends on the proposals. A scheduler that keeps a window
open over several steps finds the last one in `state.window`, which is empty at the start of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from learn2pd.decoding.stops import is_among
from learn2pd.errors import UserError
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window

SEARCH_SHARE = 0.25  # of the canvas in which AdaBlock looks for a delimiter, as in the authors' code


class Scheduler(Protocol):
    name: str
    alignment: str  # "prompt": windows are whole blocks counted from the end of the prompt; "sliding"; "semantic": ends follow the text
    block_length: int  # tokens: of a block, of the first window, or of a block without a delimiter
    slides: bool  # True: the window moves at every step

    def check_model(self, spec: ModelSpec) -> None:
        """Raises UserError where the scheduler does not fit the model."""

    def propose(self, state: DecodeState) -> Window: ...

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window: ...


def newline_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that are white space with a new line in it: the delimiters of AdaBlock where none are named."""
    texts = ((token, tokenizer.decode([token])) for token in range(len(tokenizer)))
    return [token for token, text in texts if "\n" in text and not text.strip()]


def leftmost_mask(state: DecodeState) -> Tensor:
    """[B] long, 0 for finished rows, which no plan contains."""
    return state.masked.int().argmax(1)


class BlocksScheduler:
    """Semi-autoregressive blocks (LLaDA, arXiv 2502.09992): the first block, counted from the end of the prompt, with a mask left.

    A canvas that is no multiple of the block has a shorter last block; a block at least as long as the canvas is no blocks at all.

    Args:
        block_length: tokens, at least 1.
    """

    name, alignment, slides = "blocks", "prompt", False

    def __init__(self, block_length: int = 32) -> None:
        self.block_length = _at_least(1, "block_length", block_length)

    def check_model(self, spec: ModelSpec) -> None:
        return None

    def propose(self, state: DecodeState) -> Window:
        start = leftmost_mask(state) // self.block_length * self.block_length
        return Window(start, torch.minimum(start + self.block_length, state.end))

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window:
        return window


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
        self.block_length = _at_least(1, "block_length", block_length)
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


class DSBScheduler:
    """Dynamic sliding block (DSB, arXiv 2602.05992): the window starts at the leftmost mask and slides with every commit.

    It ends at block_length + (tokens committed so far); with `mode="const"` it is at most `block_length` long, with `mode="greedy"` it
    grows whenever inner tokens are committed first.

    Args:
        block_length: tokens of the first window.
        mode: `const` or `greedy`.
        leak: positions behind the window that may be committed too; only `DSBCache(reference_quirks=True)` needs it.
    """

    name, alignment, slides = "dsb", "sliding", True

    def __init__(self, block_length: int = 32, mode: str = "greedy", leak: int = 0) -> None:
        if mode not in ("const", "greedy"):
            raise ValueError(f"mode={mode!r}: expected const or greedy")
        self.block_length, self.mode, self.leak = _at_least(1, "block_length", block_length), mode, _at_least(0, "leak", leak)

    def check_model(self, spec: ModelSpec) -> None:
        return None

    def propose(self, state: DecodeState) -> Window:
        start = leftmost_mask(state)
        if self.leak:  # their window does not jump over what leaked out of the last one
            start = torch.minimum(start, (state.window.stop - self.leak).clamp_min(0))
        stop = self.block_length + (state.committed_at >= 0).sum(1)
        if self.mode == "const":
            stop = torch.minimum(stop, start + self.block_length)
        return Window(start, torch.minimum(stop, state.end) + self.leak)

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window:
        return window


class LookaheadScheduler:
    """APD's window (arXiv 2506.00413): the leftmost mask and what follows it.

    Args:
        max_lookahead: M, tokens; None is the rest of the canvas.
    """

    name, alignment, slides = "lookahead", "sliding", True

    def __init__(self, max_lookahead: int | None = None) -> None:
        self.max_lookahead = None if max_lookahead is None else _at_least(1, "max_lookahead", max_lookahead)
        self.block_length = self.max_lookahead or 0

    def check_model(self, spec: ModelSpec) -> None:
        return None

    def propose(self, state: DecodeState) -> Window:
        start = leftmost_mask(state)
        return Window(start, state.end if self.max_lookahead is None else torch.minimum(start + self.max_lookahead, state.end))

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window:
        return window


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise ValueError(f"{name}={value}: expected at least {least}")
    return value
