"""Adaptive parallel decoding (APD, arXiv 2506.00413): an autoregressive verifier decides how much of a draft to keep.

The rule: the dLLM's proposals from the leftmost mask on are a draft. A small autoregressive model, the verifier, reads
the draft from left to right. At each position a target token is drawn from the mixture

    R * log p_dLLM + (1 - R) * log p_AR,

where p_AR is the verifier's probability after it has read the draft up to this position. Draft and target are drawn
with the same Gumbel noise and the same temperature. The policy commits the longest prefix on which target = draft
everywhere, and the first position in any case.

Deviations from the authors' code:

- Their acceptance test runs without noise at every temperature, because a default value swallows the noise, and their
  draft is drawn at the square of the temperature. Here draft and target share the noise and the temperature, as the
  paper says. At temperature 0 both versions agree.
- Their verifier carries the output of the last accepted token over to the next step; after a fully accepted draft this
  output is stale. Here the verifier computes the last accepted token again.

The file also holds `LeftToRightPolicy`, the baseline of the paper.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.errors import check_at_least
from learn2pd.loop.crossing import upload
from learn2pd.models.identity import file_states
from learn2pd.policies.verifier import Verifier, VerifierMemory, load_verifier
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction

if TYPE_CHECKING:
    from learn2pd.method import Method


class APDPolicy(Policy):
    """Adaptive parallel decoding.

    Args:
        verifier: The autoregressive model.
        mixture_weight: R, above 0 and at most 1. A larger weight trusts the dLLM more and is faster.

    Raises:
        ValueError: The weight is out of range.
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
        asked = eligible.any(1)
        first = eligible.int().argmax(1)
        stop = eligible.shape[1] - eligible.flip(1).int().argmax(1)
        # the size of the verifier's forward follows from these: this waits for the device
        described = torch.stack((asked, first, stop), 1).tolist()
        bounds = [(row, begin, end) for row, (is_asked, begin, end) in enumerate(described) if is_asked]
        if not bounds:
            return Commit(eligible)
        rows, begins, ends = zip(*bounds, strict=True)
        drafted = torch.where(eligible, prediction.tokens, state.canvas)
        tokens = torch.cat((state.tokens[:, : state.prompt_width], drafted), dim=1)
        columns = min(begins) + state.prompt_width, max(ends) + state.prompt_width
        scores, memory = self.verifier.score(
            tokens, state.pad, upload(torch.tensor(rows), first.device), columns, memory
        )
        number = (asked.cumsum(0) - 1).clamp_min(0)  # [B] long, the place of each row among those that are scored
        differs = torch.zeros_like(eligible)
        for part in prediction.logits_parts():
            joint = scores(number[part.rows], part.positions + state.prompt_width)
            width = min(joint.shape[1], part.logits.shape[1])
            mixture = self.mixture_weight * part.logits[:, :width] + (1 - self.mixture_weight) * joint[:, :width]
            differs[part.rows, part.positions] = part.draw(mixture) != part.of(prediction.tokens)
        differs = differs & eligible & (torch.arange(eligible.shape[1], device=first.device) != first[:, None])
        return Commit(eligible & (differs.cumsum(1) == 0), auxiliary=asked.long(), memory=memory)


@functools.lru_cache(maxsize=1)
def _verifier(path: str, dtype: str, device: str, states: str) -> Verifier:
    """Load a verifier once. A run builds its methods twice, to check them and to use them."""
    return load_verifier(path, dtype, device)


@checked()
def load_apd(verifier: str, mixture_weight: float = 0.7, dtype: str = "float32", device: str = "auto") -> APDPolicy:
    """Build the policy with a verifier from a folder or from the hub. It is loaded again where its files have changed.

    Args:
        verifier: A folder or a hub name.
        mixture_weight: R, as for `APDPolicy`.
        dtype: The type of the verifier's weights, such as `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda` and so on.

    Returns:
        The policy.

    Raises:
        UserError: The verifier cannot be loaded.
        ValueError: The weight is out of range.
    """
    states = json.dumps(file_states(sorted(Path(verifier).glob("*"))))
    return APDPolicy(_verifier(verifier, dtype, device, states), mixture_weight)


class LeftToRightPolicy(Policy):
    """APD's baseline: every step commits the same number of leftmost proposals.

    Args:
        tokens_per_step: The positions that a step commits in each row, at least 1.

    Raises:
        ValueError: The number is below 1.
    """

    name = "left_to_right"

    def __init__(self, tokens_per_step: int = 1) -> None:
        self.tokens_per_step = check_at_least(1, "tokens_per_step", tokens_per_step)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        return Commit(eligible & (eligible.cumsum(1) <= self.tokens_per_step))
