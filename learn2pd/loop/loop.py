"""The one decoding loop. It knows no method by name: policy, scheduler, cache and stop rule are handed in.

while rows are open: propose a window -> plan -> forward -> proposals -> resolve the window -> select -> at least one -> write -> stop.
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
from learn2pd.tensors import most_confident
from learn2pd.types import GREEDY, NOT_PROPOSED, Commit, DecodeState, Prediction, Sampling, Step

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
    """Decode a batch to its end.

    Args:
        model: from `load_model(...).adapter`.
        state: from `DecodeState.start`.
        method: policy, scheduler, cache and stop rule, which fit each other and the model (`Method.check`).
        sampling: how tokens are drawn; every row has its own seed in the state.
        observer: gets every step.
        watch: is told how long each part of a step took.

    Returns:
        The final state.

    Raises:
        UserError: the policy commits or revokes what it may not, or scheduler and cache leave nothing to commit.
    """
    spec, policy, scheduler, stop = model.spec, method.policy, method.scheduler, method.stop
    watch, observer = watch or Stopwatch(model.device), observer or Observer()
    store = model.new_store(*state.tokens.shape) if method.cache.keeps else None
    forward = ForwardStep(model, store, method.needs | observer.needs, sampling, watch)
    scores_committed = policy.scores_committed or observer.scores_committed
    looks_ahead = stop.looks_ahead or observer.looks_ahead
    own, plan_memory, windows, endings = (role.start(state, spec) for role in (policy, method.cache, scheduler, stop))
    illegal = torch.zeros_like(state.failed)
    while _goes_on(state, illegal, method):
        opened = state.open
        state = replace(state, window=scheduler.propose(state, windows))
        score = state.window.mask(state.gen_length) & (state.masked | scores_committed)
        score = (score | state.masked if looks_ahead else score) & opened[:, None]
        plans, plan_memory = method.cache.plan(state, score, plan_memory)
        state, prediction, broken = forward(state, plans)
        state = replace(state, window=scheduler.resolve(state, state.window, prediction, windows))
        inside = state.window.mask(state.gen_length)
        eligible = inside & state.masked & prediction.valid
        # what may be taken back or overwritten, while the policy's revisions last
        revisable = inside & state.decided & ~state.given & (opened & (state.step < policy.revisions))[:, None]
        with watch("policy"):
            commit = policy.select(prediction, eligible, state, own)
            own = own if commit.memory is None else commit.memory
            illegal = _outside(commit, eligible, revisable)
            commit = at_least_one(commit, prediction, eligible)
        end = torch.where(broken, state.leftmost_mask, stop.ends(state, prediction, commit, endings))
        after = state.commit(commit, prediction.tokens, spec.mask_id).close(end, spec.eot_ids[0], stop.cuts)
        proposed = torch.where(prediction.valid & inside, prediction.tokens, NOT_PROPOSED)
        after = replace(after, step=state.step + opened, failed=state.failed | broken, previous=proposed)
        observer.observe(Step(state, prediction, commit, after))
        state = after
    return state


def _goes_on(state: DecodeState, illegal: Tensor, method: Method) -> bool:
    """Whether a row is open.

    Every step commits in every open row, and after the policy's revisions nothing is taken back; so there is a last step.
    """
    spent = state.open & (state.step >= state.gen_length + method.policy.revisions)
    goes_on, stuck, wrong = torch.stack(
        (state.open.any(), spent.any(), illegal.any())
    ).tolist()  # one wait for the device a step
    if wrong:
        raise UserError(
            f"policy {method.policy.name!r}: it commits positions that are not eligible, or revokes what it may not; "
            "a policy commits eligible positions, and while its `revisions` last it revokes or overwrites committed positions of the window"
        )
    if stuck:
        raise UserError(
            f"scheduler {method.scheduler.name!r} and cache {method.cache.name!r} leave no position to commit: one opens what the other hides"
        )
    return bool(goes_on)


def _outside(commit: Commit, eligible: Tensor, revisable: Tensor) -> Tensor:
    """[B] bool: rows in which a policy does what it may not."""
    outside = commit.mask & ~(eligible | revisable)
    if commit.revoke is not None:
        outside = outside | (commit.revoke & (~revisable | commit.mask))
    return outside.any(1)


def at_least_one(commit: Commit, prediction: Prediction, eligible: Tensor) -> Commit:
    """Rows in which the rule commits no eligible position get their most confident one, so that every run terminates."""
    missing = ~(commit.mask & eligible).any(1, keepdim=True)
    added = most_confident(prediction.confidence, eligible) & missing
    forced = added if commit.forced is None else commit.forced | added
    return replace(commit, mask=commit.mask | added, forced=forced)
