"""What becomes of a policy's commit: whether it is allowed, whether its window stays open, and what is added to it.

The loop and the step over a block (block.py) share these functions. In the shapes, B is the number of rows and G the
number of positions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident, revisable
from learn2pd.types import Commit, DecodeState, Prediction


def outside(commit: Commit, eligible: Tensor, state: DecodeState, policy: Policy) -> Tensor:
    """Mark the rows in which the policy commits or revokes a position that it may not.

    Args:
        commit: The commit.
        eligible: [B, G] bool, the positions that the policy may commit.
        state: The state before the commit.
        policy: The policy.

    Returns:
        [B] bool.
    """
    wrong = commit.mask & ~eligible
    if policy.revisions or commit.revoke is not None:
        may_change = revisable(state, policy.revisions)
        wrong = wrong & ~may_change
        if commit.revoke is not None:
            wrong = wrong | (commit.revoke & (~may_change | commit.mask))
    return wrong.any(1)


def refusal(policy: Policy) -> UserError:
    """Word the error for a commit that `outside` marks.

    Args:
        policy: The policy.
    """
    return UserError(
        f"policy {policy.name!r}: it commits positions that are not eligible, or revokes what it may not; a "
        "policy commits eligible positions, and while its `revisions` last it revokes or overwrites committed "
        "positions of the window"
    )


def stays(commit: Commit, state: DecodeState, end: Tensor, policy: Policy) -> Tensor:
    """Mark the rows whose policy looks at the same window once more, which its `revisions` must allow.

    Args:
        commit: The commit.
        state: The state before the commit.
        end: [B] long, the first position that is closed after the commit.
        policy: The policy.

    Returns:
        [B] bool.
    """
    if commit.stay is None:
        return torch.zeros_like(state.failed)
    return commit.stay & state.open & (state.step + 1 < policy.revisions) & (state.window.start < end)


def at_least_one(commit: Commit, prediction: Prediction, eligible: Tensor) -> Commit:
    """Add the most confident position in rows where the policy commits no eligible one, so that a run ends.

    Args:
        commit: The commit.
        prediction: The proposals of this step.
        eligible: [B, G] bool, the positions that the policy may commit.

    Returns:
        The commit with the added positions.
    """
    missing = ~(commit.mask & eligible).any(1, keepdim=True)
    return _with(most_confident(prediction.confidence, eligible) & missing, commit)


def at_least(count: Tensor | int, commit: Commit, prediction: Prediction, eligible: Tensor) -> Commit:
    """Add the most confident positions in rows where the policy commits fewer eligible ones than a number.

    Args:
        count: The number, at least 1: one for all rows, or [B] long.
        commit: The commit.
        prediction: The proposals of this step.
        eligible: [B, G] bool, the positions that the policy may commit.

    Returns:
        The commit with the added positions.
    """
    if isinstance(count, int) and count == 1:
        return at_least_one(commit, prediction, eligible)
    committed = commit.mask & eligible
    missing = (count - committed.sum(1)).clamp_min(0)
    return _with(most_confident(prediction.confidence, eligible & ~committed, missing), commit)


def _with(added: Tensor, commit: Commit) -> Commit:
    forced = added if commit.forced is None else commit.forced | added
    return replace(commit, mask=commit.mask | added, forced=forced)
