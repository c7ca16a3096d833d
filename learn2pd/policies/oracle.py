"""The oracle (EGP, "extremely greedy parallel", Learn2PD, arXiv 2509.25188): commits exactly the proposals that equal a known answer.

The known answer is the model's own decode with one token a step. Where no proposal of the window is right, nothing would ever change,
so the rest of the window is filled with the known answer (the authors' stall rule).

Deviation from the authors' code: they notice a stall when two forwards in a row propose the same; without a commit the second forward
is the first again, so here the fill comes at once and that forward is saved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory

if TYPE_CHECKING:
    from learn2pd.method import Method


@dataclass(frozen=True)
class Reference(RowMemory):
    """The known answer of every row, and what a guided policy remembers itself."""

    tokens: Tensor  # [B, G] long
    own: Any = None


class OraclePolicy(Policy):
    """The oracle.

    Args:
        reference: [N, G] long, the answer of every prompt of the caller's list.
    """

    name = "oracle"
    knows_answer = True

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference

    def start(self, state: DecodeState, spec: ModelSpec) -> Reference:
        return Reference(_answers(self.reference, state))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Reference) -> Commit:
        right = eligible & (prediction.tokens == memory.tokens)
        stalled = ~right.any(1, keepdim=True)
        return Commit(right | (eligible & stalled), tokens=memory.tokens, forced=eligible & stalled)


class GuidedPolicy(Policy):
    """Another policy chooses the positions, a known answer the tokens: where the policy would commit a wrong proposal, the right token is written.

    So every state that it meets lies on the way to the known answer, and "equals the known answer" is a fair label in all of them. After an
    error of its own the label would not be fair.

    Args:
        policy: the one that chooses.
        reference: [N, G] long, the answer of every prompt of the caller's list.
    """

    name = "guided"
    knows_answer = True

    def __init__(self, policy: Policy, reference: Tensor) -> None:
        self.policy = policy
        self.reference = reference
        self.needs = policy.needs
        self.scores_committed = policy.scores_committed
        self.window_width = policy.window_width

    def check(self, spec: ModelSpec, method: Method) -> None:
        self.policy.check(spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> Reference:
        return Reference(_answers(self.reference, state), self.policy.start(state, spec))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Reference) -> Commit:
        commit = self.policy.select(prediction, eligible, state, memory.own)
        own = memory.own if commit.memory is None else commit.memory
        return replace(commit, tokens=memory.tokens, memory=Reference(memory.tokens, own))


def _answers(reference: Tensor, state: DecodeState) -> Tensor:
    """[B, G] the answers of the rows of a run.

    Raises:
        ValueError: the answers are of another length than the canvas.
    """
    if reference.shape[1] != state.gen_length:
        raise ValueError(f"reference: the answers have {reference.shape[1]} tokens, the canvas has {state.gen_length}")
    return reference.to(state.tokens.device)[state.index]
