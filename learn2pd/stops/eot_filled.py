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

import torch
from torch import Tensor

from learn2pd.roles import StopRule
from learn2pd.tensors import after_first, may_end
from learn2pd.types import Commit, DecodeState, Prediction


class EotFilledStop(StopRule):
    """End at an end-of-text before which nothing is left to decode.

    Args:
        whole_window: True decodes the window of the end-of-text to its end first.
    """

    name = "eot_filled"

    def __init__(self, whole_window: bool = True) -> None:
        self.whole_window = whole_window

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: None) -> Tensor:
        after = state.written(commit, prediction.tokens)
        position = torch.arange(state.gen_length, device=state.end.device)
        ended = after.decided & may_end(after, after.canvas)
        behind = after_first(ended)
        if self.whole_window:
            behind = torch.where(ended.any(1), torch.maximum(behind, state.window.stop), behind)
        # the window of a finished row means nothing
        filled = state.open & ended.any(1) & ~(after.masked & (position < behind[:, None])).any(1)
        return torch.where(filled, torch.minimum(state.end, behind), state.end)
