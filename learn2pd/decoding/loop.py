"""The one decoding loop. It knows no method by name: scheduler, policy, cache and stop rule are handed in.

while rows are open: propose a window -> plan -> forward -> proposals -> resolve the window -> select -> at least one -> write -> stop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from learn2pd.decoding.caches import Cache
from learn2pd.decoding.proposals import EXTRAS, propose, sample
from learn2pd.decoding.schedulers import Scheduler
from learn2pd.decoding.stops import StopRule
from learn2pd.models.adapter import ModelAdapter
from learn2pd.policies.base import Policy, most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class Recorder(Protocol):
    """Watches a run. `needs` and `scores_committed` ask for what a policy may ask for."""

    needs: frozenset[str]
    scores_committed: bool

    def record(self, state: DecodeState, prediction: Prediction, commit: Commit) -> None:
        """Called once a step with the state before the commit."""


class Predictor:
    """Runs plans and gathers proposals; holds the loop's only forward counter and clock."""

    def __init__(self, model: ModelAdapter, needs: frozenset[str], temperature: float, generators: Sequence[torch.Generator]) -> None:
        self.model, self.needs, self.temperature, self.generators = model, needs, temperature, generators
        self.model_s = 0.0

    def __call__(self, state: DecodeState, cache: Cache, score: Tensor, memory: object) -> tuple[DecodeState, Prediction]:
        tokens, confidence = torch.zeros_like(state.canvas), torch.zeros(score.shape, device=score.device)
        extras = {name: torch.zeros_like(confidence) for name in EXTRAS if name in self.needs}
        forwards = state.forwards.clone()
        for plan in cache.plan(state, score, memory):
            started = time.perf_counter()
            logits = self.model.score(self.model.forward(state.tokens[plan.rows[:, None], plan.query], plan)[plan.score])  # [N, V]
            self.model_s += self.model.elapsed(started)
            forwards[plan.rows] += 1
            row = plan.rows[:, None].expand_as(plan.query)[plan.score]
            position = plan.query[plan.score] - state.prompt_width
            tokens[row, position], confidence[row, position], found = propose(logits, self.model.spec.mask_id, self.needs)
            if self.temperature > 0:
                tokens[row, position], confidence[row, position] = sample(logits, self.temperature, row, self.generators, self.model.spec.mask_id)
            for name, values in found.items():
                extras[name][row, position] = values
        return replace(state, forwards=forwards), Prediction(tokens, confidence, score & state.open[:, None], extras)


@torch.inference_mode()
def decode_batch(
    model: ModelAdapter,
    state: DecodeState,
    *,
    scheduler: Scheduler,
    policy: Policy,
    cache: Cache,
    stop: StopRule,
    temperature: float = 0.0,
    generators: Sequence[torch.Generator] = (),
    recorder: Recorder | None = None,
) -> tuple[DecodeState, float]:
    """Decode a batch to its end.

    Returns:
        The final state and the seconds spent inside the model.
    """
    needs = policy.needs | (recorder.needs if recorder else frozenset())
    scores_committed = policy.scores_committed or (recorder is not None and recorder.scores_committed)
    predict = Predictor(model, needs, temperature, generators)
    memory, kept = policy.start(state), cache.start(state)
    while bool(state.open.any()):
        state = replace(state, window=scheduler.propose(state))
        score = state.window.mask(state.gen_length) & (state.masked | scores_committed)
        score = (score | state.masked if stop.looks_ahead else score) & state.open[:, None]
        state, prediction = predict(state, cache, score, kept)
        state = replace(state, window=scheduler.resolve(state, state.window, prediction))
        eligible = state.window.mask(state.gen_length) & state.masked & prediction.valid
        commit = at_least_one(policy.select(prediction, eligible, state, memory), prediction, eligible)
        end = stop.ends(state, prediction, commit, model.spec.eot_ids)
        if recorder:
            recorder.record(state, prediction, commit)
        state = state.commit(commit, prediction.tokens).close(end, model.spec.eot_ids[0], stop.cuts)
        state = replace(state, step=state.step + 1)
    return state, predict.model_s


def at_least_one(commit: Commit, prediction: Prediction, eligible: Tensor) -> Commit:
    """Rows in which the rule takes nothing commit their most confident eligible position, so that every run terminates."""
    missing = ~commit.mask.any(1, keepdim=True)
    added = most_confident(prediction.confidence, eligible) & missing
    forced = added if commit.forced is None else commit.forced | added
    return replace(commit, mask=(commit.mask & eligible) | added, forced=forced)
