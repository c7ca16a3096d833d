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
    illegal = torch.zeros_like(state.failed)
    while _goes_on(state, illegal, method):
        opened = state.open
        state = replace(state, window=_kept(state, method.scheduler.propose(state, windows)))
        score = state.window.mask(state.gen_length) & (state.masked | scores_committed)
        score = score | state.masked if looks_ahead else score
        score = (score | policy.scores_committed if policy.looks_ahead else score) & opened[:, None]
        plans, plan_memory = method.cache.plan(state, score, plan_memory)
        state, prediction, broken = forward(state, plans)
        state = replace(state, window=method.scheduler.resolve(state, state.window, prediction, windows))
        inside = state.window.mask(state.gen_length)
        candidates = state.masked & prediction.valid
        eligible = inside & candidates
        # in its first steps a policy may take back or overwrite these positions; `Policy.revisions` counts the steps
        may_change = revisable(state, policy.revisions)
        with watch("policy"):
            commit = policy.select(prediction, eligible, state, own)
            own = own if commit.memory is None else commit.memory
            illegal = _outside(commit, candidates if policy.looks_ahead else eligible, may_change)
            commit = at_least_one(commit, prediction, eligible)
        end = torch.where(
            broken & state.masked.any(1), state.leftmost_mask, method.stop.ends(state, prediction, commit, endings)
        )
        stays = torch.zeros_like(opened)
        if commit.stay is not None:
            revises = state.step + 1 < policy.revisions
            stays = commit.stay & opened & ~broken & revises & (state.window.start < end)
        after = state.commit(commit, prediction.tokens, spec.mask_id).close(end, spec.eot_ids[0], method.stop.cuts)
        proposed = torch.where(prediction.valid & inside, prediction.tokens, NOT_PROPOSED)
        after = replace(after, step=state.step + opened, failed=state.failed | broken, previous=proposed, stays=stays)
        observer.observe(Step(state, prediction, commit, after))
        state = after
    return state


def _kept(state: DecodeState, proposed: Window) -> Window:
    """Return the last window in the rows whose policy looks at it once more, and the proposed one in the others."""
    stop = torch.minimum(state.window.stop, state.end)
    return Window(
        torch.where(state.stays, state.window.start, proposed.start), torch.where(state.stays, stop, proposed.stop)
    )


def _goes_on(state: DecodeState, illegal: Tensor, method: Method) -> bool:
    """Say whether a row is open, and raise the errors of the last step, so that a step waits once for the device.

    Every step commits a position in every open row. After its `revisions` a policy takes nothing back, so a run ends.
    """
    spent = state.open & (state.step >= state.gen_length + method.policy.revisions)
    goes_on, stuck, wrong = torch.stack((state.open.any(), spent.any(), illegal.any())).tolist()
    if wrong:
        raise UserError(
            f"policy {method.policy.name!r}: it commits positions that are not eligible, or revokes what it may not; a "
            "policy commits eligible positions, and while its `revisions` last it revokes or overwrites committed "
            "positions of the window"
        )
    if stuck:
        raise UserError(
            f"scheduler {method.scheduler.name!r} and cache {method.cache.name!r} leave no position to commit: "
            "one opens what the other hides"
        )
    return bool(goes_on)


def _outside(commit: Commit, eligible: Tensor, may_change: Tensor) -> Tensor:
    """Mark the rows [B] bool in which the policy commits or revokes a position that it may not."""
    outside = commit.mask & ~(eligible | may_change)
    if commit.revoke is not None:
        outside = outside | (commit.revoke & (~may_change | commit.mask))
    return outside.any(1)


def at_least_one(commit: Commit, prediction: Prediction, eligible: Tensor) -> Commit:
    """Add the most confident position in rows where the policy commits no eligible [B, G] one, so that a run ends."""
    missing = ~(commit.mask & eligible).any(1, keepdim=True)
    added = most_confident(prediction.confidence, eligible) & missing
    forced = added if commit.forced is None else commit.forced | added
    return replace(commit, mask=commit.mask | added, forced=forced)
