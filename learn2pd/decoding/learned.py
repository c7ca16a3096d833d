"""A stop rule and a scheduler that ask a trained signal where the answer, or a step of it, ends."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.decoding.schedulers import AdaBlockScheduler
from learn2pd.decoding.stops import EotStop, is_among
from learn2pd.signals.channels import canvas_view, cut, observe
from learn2pd.signals.storage import Signal
from learn2pd.types import Commit, DecodeState, Prediction, Window


def probability(signal: Signal, state: DecodeState, prediction: Prediction, window: Window, width: int) -> Tensor:
    """[B, G] the signal's probability inside each row's window, 0 elsewhere."""
    columns = observe(state, prediction, None, signal.contract.eot_ids, signal.contract.delimiter_ids)
    view = cut(columns, window, width, signal.network.sees_committed)
    network = signal.network.to(state.tokens.device)
    return canvas_view(network.probability(view), window, state.gen_length)


class LearnedStop(EotStop):
    """End where a trained signal says that the answer has ended, as soon as it does; and, as `eot`, after an end-of-text that was committed.

    The row ends at the first masked position that the signal puts behind the answer's end with more than its threshold, and that has no
    committed token of an answer behind it. The threshold is calibrated to cut no answer short on held-out prompts.

    Args:
        signal: of kind end_of_text.
        floor: as for `eot`.
    """

    name, cuts, looks_ahead = "learned", False, True

    def __init__(self, signal: Signal, floor: float = 0.5) -> None:
        super().__init__(floor)
        self.signal, self.contract = signal, signal.contract

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        position = torch.arange(state.gen_length, device=state.end.device)
        zeros = torch.zeros_like(state.end)
        sure = probability(self.signal, state, prediction, Window(zeros, zeros + state.gen_length), state.gen_length) > self.signal.threshold
        tokens = torch.where(commit.mask, prediction.tokens if commit.tokens is None else commit.tokens, state.canvas)
        answer = (~state.masked | commit.mask) & ~is_among(tokens, eot_ids)
        last = torch.where(answer, position, -1).amax(1, keepdim=True)  # [B, 1] nothing that was written is taken back
        found = sure & state.masked & prediction.valid & (position > last)
        first = torch.where(found.any(1), found.int().argmax(1), state.end)
        return torch.minimum(first, super().ends(state, prediction, commit, eot_ids))


class LearnedAdaBlockScheduler(AdaBlockScheduler):
    """AdaBlock with a trained signal in place of the delimiter rule: a block ends at the first position where a step of the answer ends.

    Args:
        signal: of kind boundary.
        block_length: tokens of a block in which the signal finds no end.
    """

    name = "adablock_learned"

    def __init__(self, signal: Signal, block_length: int = 32) -> None:
        super().__init__(signal.contract.delimiter_ids, block_length, signal.threshold)
        self.signal, self.contract = signal, signal.contract

    def _block_end(self, state: DecodeState, searched: Window, prediction: Prediction) -> tuple[Tensor, Tensor]:
        found = probability(self.signal, state, prediction, searched, max(1, self._search(state))) > self.delimiter_threshold
        found = found & prediction.valid & state.masked
        return found.int().argmax(1) + 1, found.any(1)
