"""End at an end-of-text before which nothing is left to decode (SDAR, LLaDA2, Fast-dLLM v2).

The rule: with the first end-of-text behind all tokens that the caller gave at position e, a row ends

- behind the window that holds e, once no position before the end of that window is a mask (`whole_window`), or
- behind e, once no position before e is a mask (`whole_window=False`).

The first is the stop of SDAR and LLaDA2, which look at a block when it is finished. The second is LLaDA2's
eos_early_stop and the stop of Fast-dLLM v2. Until then, the window is decoded to its end. `eot` differs: it closes the
positions behind an end-of-text as soon as the end-of-text is committed, and the model sees them closed while it
decodes the masks before it.

Deviations from the authors' code: LLaDA2's early check looks at the prompt too, so that an end-of-text in it, as in
every chat of several turns, gives an empty answer. Here only the canvas counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learn2pd.roles import StopRule
from learn2pd.stops.eot import EotIds
from learn2pd.tensors import after_first, is_among
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction


class EotFilledStop(StopRule):
    """End at an end-of-text before which nothing is left to decode.

    Args:
        whole_window: True decodes the window of the end-of-text to its end first.
    """

    name = "eot_filled"

    def __init__(self, whole_window: bool = True) -> None:
        self.whole_window = whole_window

    def start(self, state: DecodeState, spec: ModelSpec) -> Any:
        return EotIds(spec.eot_ids)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: Any) -> Tensor:
        written = prediction.tokens if commit.tokens is None else commit.tokens
        masked = state.masked & ~commit.mask
        if commit.revoke is not None:
            masked = masked | commit.revoke
        tokens = torch.where(commit.mask, written, state.canvas)
        position = torch.arange(state.gen_length, device=tokens.device)
        ended = is_among(tokens, memory.eot_ids) & ~masked & (position < state.end[:, None]) & state.behind_given
        behind = after_first(ended)
        if self.whole_window:
            behind = torch.where(ended.any(1), torch.maximum(behind, state.window.stop), behind)
        # the window of a finished row means nothing
        filled = state.open & ended.any(1) & ~(masked & (position < behind[:, None])).any(1)
        return torch.where(filled, torch.minimum(state.end, behind), state.end)
