"""The one decoding loop. It knows no method by name: the caller hands in policy, scheduler, cache and stop rule.

Each step opens a window, plans the forward, runs it, resolves the window by the proposals, lets the policy select a
commit, adds a position to an empty one, writes it, and closes what the stop rule ends. In the shapes, B is the number
of rows and G the number of canvas positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.loop.observing import Observer
from learn2pd.loop.step import ForwardStep
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.adapter import ModelAdapter
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident, revisable
from learn2pd.types import GREEDY, NOT_PROPOSED, Commit, DecodeState, Prediction, Sampling, Step, Window

if TYPE_CHECKING:
    from learn2pd.method import Method


@torch.no_grad()
def decode_batch(
    model: ModelAdapter,
    state: DecodeState,
    method: Method,
    *,
    sampling: Sampling = GREEDY,
    observer: Observer | None = None,
    watch: Stopwatch | None = None,
) -> DecodeState:
    """Decode a batch until no row is open. A row is open while a position of its canvas is masked.

    Args:
        model: The adapter of a loaded model.
        state: The state that `DecodeState.start` made.
        method: Policy, scheduler, cache and stop rule, for which `Method.check` passed.
        sampling: How tokens are drawn. Every row has its own seed in the state.
        observer: It receives every step.
        watch: It counts the seconds of the parts of a step.

    Returns:
        The final state.

    Raises:
        UserError: The policy commits or revokes a position that it may not, or cache and scheduler leave no position.
    """
    spec = model.spec
    policy = method.policy
    watch = watch or Stopwatch(model.device)
    observer = observer or Observer()
    store = model.new_store(*state.tokens.shape) if method.cache.keeps else None
    forward = ForwardStep(model, store, method.needs | observer.needs, sampling, watch)
    scores_committed = policy.scores_committed or observer.scores_committed
    looks_ahead = method.stop.looks_ahead or observer.looks_ahead or policy.looks_ahead
    roles = (policy, method.cache, method.scheduler, method.stop)
    own, plan_memory, windows, endings = (role.start(state, spec) for role in roles)  # the memory of each role
    last_given = torch.where(state.given, torch.arange(1, state.gen_length + 1, device=state.given.device), 0).amax(1)
    illegal = torch.zeros_like(state.failed)
    for _ in range(state.gen_length + policy.revisions + 1):  # every step commits a position in every open row
        opened = state.open
        if not _goes_on(opened, illegal, policy):
            return state
        window = method.scheduler.propose(state, windows)
        state = replace(state, window=_kept(state, window) if policy.revisions else window)
        inside = state.window.mask(state.gen_length)
        score = inside & (opened[:, None] if scores_committed else state.masked)
        score = score | state.masked if looks_ahead else score
        score = score | opened[:, None] if policy.looks_ahead and policy.scores_committed else score
        plans, plan_memory = method.cache.plan(state, score, plan_memory)
        state, prediction, broken = forward(state, plans)
        window = method.scheduler.resolve(state, state.window, prediction, windows)
        if window is not state.window:
            state = replace(state, window=window)
            inside = window.mask(state.gen_length)
        candidates = state.masked & prediction.valid
        eligible = inside & candidates
        with watch("policy"):
            commit = policy.select(prediction, eligible, state, own)
            own = own if commit.memory is None else commit.memory
            illegal = _outside(commit, candidates if policy.looks_ahead else eligible, state, policy)
            commit = at_least_one(commit, prediction, eligible)
        fails = broken & state.masked.any(1)
        end = torch.where(fails, state.leftmost_mask, method.stop.ends(state, prediction, commit, endings))
        end = torch.maximum(end, last_given)  # no row ends before a token that the caller gave
        after = state.commit(commit, prediction.tokens, spec.mask_id).close(end, spec.eot_ids[0], method.stop.cuts)
        after = replace(
            after,
            step=state.step + opened,
            failed=state.failed | broken,
            committed_with=torch.where(commit.mask, prediction.confidence, state.committed_with),
            previous=torch.where(inside & prediction.valid, prediction.tokens, NOT_PROPOSED),
            stays=_stays(commit, state, end, policy) & ~broken,
        )
        observer.observe(Step(state, prediction, commit, after))
        state = after
    raise UserError(
        f"scheduler {method.scheduler.name!r} and cache {method.cache.name!r} leave no position to commit: "
        "one opens what the other hides"
    )


def _kept(state: DecodeState, proposed: Window) -> Window:
    """Return the last window in the rows whose policy looks at it once more, and the proposed one in the others."""
    stop = torch.minimum(state.window.stop, state.end)
    return Window(
        torch.where(state.stays, state.window.start, proposed.start), torch.where(state.stays, stop, proposed.stop)
    )


def _stays(commit: Commit, state: DecodeState, end: Tensor, policy: Policy) -> Tensor:
    """Mark the rows [B] bool whose policy looks at the same window once more, which its `revisions` must allow."""
    if commit.stay is None:
        return torch.zeros_like(state.failed)
    return commit.stay & state.open & (state.step + 1 < policy.revisions) & (state.window.start < end)


def _goes_on(opened: Tensor, illegal: Tensor, policy: Policy) -> bool:
    """Say whether a row is open, and raise the error of the last step, so that a step waits once for the device."""
    goes_on, wrong = torch.stack((opened, illegal)).any(1).tolist()
    if wrong:
        raise UserError(
            f"policy {policy.name!r}: it commits positions that are not eligible, or revokes what it may not; a "
            "policy commits eligible positions, and while its `revisions` last it revokes or overwrites committed "
            "positions of the window"
        )
    return bool(goes_on)


def _outside(commit: Commit, eligible: Tensor, state: DecodeState, policy: Policy) -> Tensor:
    """Mark the rows [B] bool in which the policy commits or revokes a position that it may not."""
    outside = commit.mask & ~eligible
    if policy.revisions or commit.revoke is not None:
        may_change = revisable(state, policy.revisions)
        outside = outside & ~may_change
        if commit.revoke is not None:
            outside = outside | (commit.revoke & (~may_change | commit.mask))
    return outside.any(1)


def at_least_one(commit: Commit, prediction: Prediction, eligible: Tensor) -> Commit:
    """Add the most confident position in rows where the policy commits no eligible [B, G] one, so that a run ends."""
    missing = ~(commit.mask & eligible).any(1, keepdim=True)
    added = most_confident(prediction.confidence, eligible) & missing
    forced = added if commit.forced is None else commit.forced | added
    return replace(commit, mask=commit.mask | added, forced=forced)
