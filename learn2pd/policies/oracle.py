"""The oracle (EGP, "extremely greedy parallel", Learn2PD, arXiv 2509.25188): commits exactly the proposals that equal a known answer.

The known answer is the model's own decode with one token a step. Where no proposal of the window is right, nothing would ever change,
so the rest of the window is filled with the known answer (the authors' stall rule).

Deviation from the authors' code: they notice a stall when two forwards in a row propose the same; without a commit the second forward
is the first again, so here the fill comes at once and that forward is saved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, Prediction


class OraclePolicy:
    """Args: reference, [N, G] long: the answer of every prompt of the caller's list."""

    name = "oracle"
    needs: frozenset[str] = frozenset()
    scores_committed = False
    window_width: int | None = None

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference

    def start(self, state: DecodeState) -> Tensor:
        if self.reference.shape[1] != state.gen_length:
            raise ValueError(f"oracle: reference answers have {self.reference.shape[1]} tokens, the canvas has {state.gen_length}")
        return self.reference.to(state.tokens.device)[state.index]  # [B, G]

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Tensor) -> Commit:
        right = eligible & (prediction.tokens == memory)
        stalled = ~right.any(1, keepdim=True)
        return Commit(right | (eligible & stalled), tokens=memory, forced=eligible & stalled)


class GuidedPolicy:
    """Another policy chooses the positions, a known answer the tokens: where the policy would commit a wrong proposal, the right token is written.

    So every state it meets lies on the way to the known answer, and "equals the known answer" is a fair label in all of them; after an error
    of its own it would not be.

    Args: policy, the one that chooses; reference, [N, G] long: the answer of every prompt of the caller's list.
    """

    name = "guided"

    def __init__(self, policy: Policy, reference: Tensor) -> None:
        self.policy, self.reference = policy, reference
        self.needs, self.scores_committed, self.window_width = policy.needs, policy.scores_committed, policy.window_width

    def start(self, state: DecodeState) -> tuple[Any, Tensor]:
        return self.policy.start(state), self.reference.to(state.tokens.device)[state.index]

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: tuple[Any, Tensor]) -> Commit:
        own, reference = memory
        return replace(self.policy.select(prediction, eligible, state, own), tokens=reference)
