"""The one decoding loop. It knows no method by name: scheduler, policy, cache and stop rule are handed in.

while rows are open: propose a window -> plan -> forward -> proposals -> resolve the window -> select -> at least one -> write -> stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.loop.step import ForwardStep
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.adapter import ModelAdapter
from learn2pd.roles import Cache, Policy, Scheduler, StopRule
from learn2pd.tensors import most_confident
from learn2pd.types import GREEDY, Commit, DecodeState, Prediction, Sampling


class Recorder(Protocol):
    """Watches a run. `needs` and `scores_committed` ask for what a policy may ask for, `looks_ahead` for what a stop rule may ask for."""

    needs: frozenset[str]
    scores_committed: bool
    looks_ahead: bool  # True: proposals are wanted at every masked position, not only in the window

    def record(self, state: DecodeState, prediction: Prediction, commit: Commit) -> None:
        """Called once a step with the state before the commit."""


@torch.inference_mode()
def decode_batch(
    model: ModelAdapter,
    state: DecodeState,
    *,
    scheduler: Scheduler,
    policy: Policy,
    cache: Cache,
    stop: StopRule,
    sampling: Sampling = GREEDY,
    generators: Sequence[torch.Generator] = (),
    recorder: Recorder | None = None,
    watch: Stopwatch | None = None,
) -> DecodeState:
    """Decode a batch to its end.

    Args:
        state: from `DecodeState.start`.
        generators: one a row, used where the temperature is above 0.
        watch: is told how long each part of a step took.

    Returns:
        The final state.
    """
    watch = watch or Stopwatch(model.device)
    needs = policy.needs | (recorder.needs if recorder else frozenset())
    scores_committed = policy.scores_committed or (recorder is not None and recorder.scores_committed)
    looks_ahead = stop.looks_ahead or (recorder is not None and recorder.looks_ahead)
    store = model.new_store(*state.tokens.shape) if cache.keeps else None
    predict = ForwardStep(model, store, needs, sampling, generators, watch)
    memory, kept = policy.start(state), cache.start(state, model.spec.shifted_logits)
    while bool(state.open.any()):
        if state.step == state.gen_length:  # every step commits in every open row
            raise UserError(f"scheduler {scheduler.name!r} and cache {cache.name!r} leave no position to commit: one opens what the other hides")
        state = replace(state, window=scheduler.propose(state))
        score = state.window.mask(state.gen_length) & (state.masked | scores_committed)
        score = (score | state.masked if looks_ahead else score) & state.open[:, None]
        state, prediction, broken = predict(state, cache.plan(state, score, kept))
        state = replace(state, window=scheduler.resolve(state, state.window, prediction))
        eligible = state.window.mask(state.gen_length) & state.masked & prediction.valid
        with watch("policy"):
            commit = at_least_one(policy.select(prediction, eligible, state, memory), prediction, eligible)
        end = torch.where(broken, state.masked.int().argmax(1), stop.ends(state, prediction, commit, model.spec.eot_ids))
        if recorder:
            recorder.record(state, prediction, commit)
        state = state.commit(commit, prediction.tokens).close(end, model.spec.eot_ids[0], stop.cuts)
        state = replace(state, step=state.step + 1, failed=state.failed | broken)
    return predict(state, cache.finish(state, kept))[0]


def at_least_one(commit: Commit, prediction: Prediction, eligible: Tensor) -> Commit:
    """Rows in which the rule takes nothing commit their most confident eligible position, so that every run terminates."""
    mask = commit.mask & eligible
    missing = ~mask.any(1, keepdim=True)
    added = most_confident(prediction.confidence, eligible) & missing
    forced = added if commit.forced is None else commit.forced | added
    return replace(commit, mask=mask | added, forced=forced)
