"""Adaptive parallel decoding (APD, arXiv 2506.00413): a small autoregressive model says how much of a left-to-right draft to keep.

The dLLM's proposals from the leftmost mask on are a draft. The target at each position is drawn from the mixture
R * log p_dLLM + (1 - R) * log p_AR, where the autoregressive model has read the draft up to there; draft and target are drawn with the same
Gumbel noise and the same temperature. Commit the longest prefix on which both agree, and in any case the first position.

Deviations from the authors' code, whose acceptance test runs without noise at any temperature (a default swallows it) and whose draft is
drawn at the temperature squared: the noise is shared and the temperature one, as in the paper. At temperature 0 nothing differs. The
verifier recomputes the last accepted token instead of carrying its output, which after a fully accepted draft is stale in theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learn2pd.errors import check_at_least
from learn2pd.policies.verifier import Verifier, VerifierMemory, load_verifier
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction

if TYPE_CHECKING:
    from learn2pd.method import Method


class APDPolicy(Policy):
    """Adaptive parallel decoding.

    Args:
        verifier: the autoregressive model.
        mixture_weight: R, above 0 and at most 1; larger trusts the dLLM more and is faster.

    Raises:
        ValueError: for another weight.
    """

    name = "apd"
    needs = frozenset({"logits"})
    auxiliary = True
    built_by = "learn2pd.policies.apd:load_apd"

    def __init__(self, verifier: Verifier, mixture_weight: float = 0.7) -> None:
        if not 0 < mixture_weight <= 1:
            raise ValueError(f"mixture_weight={mixture_weight}: expected above 0, at most 1")
        self.verifier = verifier
        self.mixture_weight = mixture_weight

    def describe(self) -> dict[str, Any]:
        return {"verifier": self.verifier.source, "mixture_weight": self.mixture_weight}

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        self.verifier.check(spec)

    def start(self, state: DecodeState, spec: ModelSpec) -> VerifierMemory:
        return self.verifier.start(state)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: VerifierMemory) -> Commit:
        rows = eligible.any(1).nonzero()[:, 0]
        if not len(rows):
            return Commit(eligible)
        assert prediction.logits is not None
        assert prediction.draw is not None
        drafted = torch.where(eligible, prediction.tokens, state.canvas)
        tokens = torch.cat((state.tokens[:, : state.prompt_width], drafted), dim=1)
        first = eligible.int().argmax(1)
        stop = eligible.shape[1] - eligible.flip(1).int().argmax(1)
        first_column, stop_column = first[rows] + state.prompt_width, stop[rows] + state.prompt_width
        scores, offset, memory = self.verifier.score(tokens, state.pad, rows, first_column, stop_column, memory)
        place = eligible[rows].nonzero()  # [N, 2]
        joint = scores[place[:, 0], place[:, 1] + state.prompt_width - offset]  # [N, V]
        scored = eligible[prediction.valid]  # which of the scored positions are eligible
        width = min(joint.shape[1], prediction.logits.shape[1])
        mixture = self.mixture_weight * prediction.logits[scored, :width] + (1 - self.mixture_weight) * joint[:, :width]
        noise = prediction.draw.noise
        target = replace(prediction.draw, noise=None if noise is None else noise[scored])(mixture)
        differs = torch.zeros_like(eligible)
        differs[rows[place[:, 0]], place[:, 1]] = target != prediction.tokens[rows[place[:, 0]], place[:, 1]]
        differs = differs & (torch.arange(eligible.shape[1], device=first.device) != first[:, None])
        return Commit(eligible & (differs.cumsum(1) == 0), auxiliary=eligible.any(1).long(), memory=memory)


def load_apd(verifier: str, mixture_weight: float = 0.7, dtype: str = "float32", device: str = "auto") -> APDPolicy:
    """APD with the verifier in a folder or on the hub.

    Raises:
        UserError: the verifier cannot be loaded.
    """
    return APDPolicy(load_verifier(verifier, dtype, device), mixture_weight)


class LeftToRightPolicy(Policy):
    """APD's baseline: the leftmost proposals, so many a step.

    Args:
        tokens_per_step: at least 1.

    Raises:
        ValueError: for a number below 1.
    """

    name = "left_to_right"

    def __init__(self, tokens_per_step: int = 1) -> None:
        self.tokens_per_step = check_at_least(1, "tokens_per_step", tokens_per_step)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        return Commit(eligible & (eligible.cumsum(1) <= self.tokens_per_step))
