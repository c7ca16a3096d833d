"""A sequence that grows: the model never sees the canvas behind the window (iLLaDA's variable-length generation).

The rule: a forward recomputes every column up to the end of the window, and the canvas behind it is not part of the
sequence. So a block is appended when the window enters it, and an answer that ends has cost nothing beyond its last
block: nobody has to guess how long it will be. What the model sees differs from a whole canvas of masks, and so do its
answers; a model should have been trained for it, as iLLaDA was.

A block-causal model never sees what is behind a block. There, `causal_block` does the same and reuses what is final.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.loop.plans import full_plan
from learn2pd.roles import Cache
from learn2pd.types import DecodeState, ForwardPlan, ModelSpec

if TYPE_CHECKING:
    from learn2pd.method import Method


class GrowCache(Cache):
    """A sequence that ends with the window."""

    name = "grow"
    keeps = False
    slides = True
    grows = True

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        if spec.causal_block is not None:
            raise UserError(
                f"cache {self.name!r} is for models in which every token sees every other, "
                f"{spec.name} reads blocks of {spec.causal_block} tokens: use cache causal_block"
            )

    def plan(self, state: DecodeState, score: Tensor, memory: None) -> tuple[list[ForwardPlan], None]:
        score = score & state.window.mask(state.gen_length)
        grown = replace(state, visible=torch.minimum(state.visible, state.window.stop))
        return full_plan(grown, state.open, score, keep=False), None
