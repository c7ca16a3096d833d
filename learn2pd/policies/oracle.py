"""The oracle (EGP, "extremely greedy parallel", Learn2PD, arXiv 2509.25188): it knows the answer beforehand.

The rule: the policy commits exactly the eligible positions with

    proposal = known answer.

The known answer is the model's own decode with one token a step. Where no proposal of the window is right, the next
forward would propose the same again, and the run would stall. The policy then fills the rest of the window with the
known answer; this is the authors' stall rule.

Deviation from the authors' code: their code notices a stall when two forwards in a row propose the same tokens. A
forward after a step without a commit repeats the one before it, so that this code fills at once and saves that forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory

if TYPE_CHECKING:
    from learn2pd.method import Method


@dataclass(frozen=True)
class Reference(RowMemory):
    """The known answer of every row.

    Attributes:
        tokens: [B, G] long.
        own: The memory of the policy that `GuidedPolicy` guides; None for the oracle.
    """

    tokens: Tensor
    own: Any = None


class OraclePolicy(Policy):
    """The oracle.

    Args:
        reference: [N, G] long, the known answer of every prompt of the caller's list.

    Raises:
        ValueError: The reference is of another type or shape.
    """

    name = "oracle"
    knows_answer = True

    def __init__(self, reference: Tensor) -> None:
        self.reference = _check_reference(reference)

    def start(self, state: DecodeState, spec: ModelSpec) -> Reference:
        return Reference(_answers(self.reference, state))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Reference) -> Commit:
        right = eligible & (prediction.tokens == memory.tokens)
        stalled = ~right.any(1, keepdim=True)
        return Commit(right | (eligible & stalled), tokens=memory.tokens, forced=eligible & stalled)


class GuidedPolicy(Policy):
    """Another policy decides which positions are committed, and the known answer decides which tokens are written.

    Where the other policy commits a wrong proposal, this one writes the right token. Every state of such a run
    therefore leads to the known answer, and "the proposal equals the known answer" is a fair label in each of them. If
    the wrong token were written, the label would be unfair from then on.

    Args:
        policy: The policy that decides on the positions.
        reference: [N, G] long, the known answer of every prompt of the caller's list.

    Raises:
        ValueError: The reference is of another type or shape.
    """

    name = "guided"
    knows_answer = True

    def __init__(self, policy: Policy, reference: Tensor) -> None:
        self.policy = policy
        self.reference = _check_reference(reference)
        self.needs = policy.needs
        self.scores_committed = policy.scores_committed
        self.looks_ahead = policy.looks_ahead
        self.reads_canvas = policy.reads_canvas
        self.window_width = policy.window_width
        self.revisions = policy.revisions
        self.auxiliary = policy.auxiliary

    def check(self, spec: ModelSpec, method: Method) -> None:
        self.policy.check(spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> Reference:
        return Reference(_answers(self.reference, state), self.policy.start(state, spec))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Reference) -> Commit:
        commit = self.policy.select(prediction, eligible, state, memory.own)
        own = memory.own if commit.memory is None else commit.memory
        return replace(commit, tokens=memory.tokens, memory=Reference(memory.tokens, own))


def _check_reference(reference: Tensor) -> Tensor:
    """Refuse answers that are not [N, G] long, and return the others."""
    if reference.ndim != 2 or reference.dtype is not torch.long:
        raise ValueError(
            f"reference is a tensor of shape {list(reference.shape)} and type {reference.dtype}: "
            "expected shape [prompts, canvas] and type torch.int64"
        )
    return reference


def _answers(reference: Tensor, state: DecodeState) -> Tensor:
    """Return the known answers of the rows of a run, [B, G] long.

    Raises:
        UserError: The answers and the canvas differ in length, or a prompt has no answer.
    """
    if reference.shape[1] != state.gen_length:
        raise UserError(f"reference: the answers have {reference.shape[1]} tokens, the canvas has {state.gen_length}")
    last = int(state.index.max())
    if last >= len(reference):
        raise UserError(f"reference: it has {len(reference)} answers, and none for prompt {last}")
    return reference.to(state.tokens.device)[state.index]
