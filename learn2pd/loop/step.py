"""Runs the forward plans of a step and gathers their proposals; holds the loop's only forward counter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from learn2pd.loop.proposals import EXTRAS, gumbel, propose
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.kv import KVStore
from learn2pd.tensors import widened
from learn2pd.types import DecodeState, Draw, ForwardPlan, Prediction, Sampling

SCORE_VALUES = 2**23  # logits held at a time: 66 positions at LLaDA's vocabulary, 32 MiB in float32


class ForwardStep:
    """Args: store, None where the cache keeps nothing; needs, what policy and recorder ask for; generators, one a row of the batch."""

    def __init__(
        self,
        model: ModelAdapter,
        store: KVStore | None,
        needs: frozenset[str],
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        watch: Stopwatch,
    ) -> None:
        self.model, self.store, self.needs, self.sampling, self.generators, self.watch = model, store, needs, sampling, generators, watch
        self.positions_at_a_time = max(1, SCORE_VALUES // model.spec.vocab_size)

    def __call__(self, state: DecodeState, plans: Sequence[ForwardPlan]) -> tuple[DecodeState, Prediction, Tensor]:
        """The state with its forwards counted, the proposals, and [B] bool: rows whose logits were not finite and so have none."""
        shape, device = state.masked.shape, state.masked.device
        tokens, confidence, valid = torch.zeros_like(state.canvas), torch.zeros(shape, device=device), torch.zeros_like(state.masked)
        extras = {name: torch.zeros(shape, device=device) for name in EXTRAS if name in self.needs}
        forwards, kept = state.forwards.clone(), []
        for plan in plans:
            with self.watch("forward"):
                hidden = self.model.forward(state.tokens[plan.rows[:, None], plan.query], plan, self.store)  # [R, Q, D]
            forwards[plan.rows] += 1
            slot = plan.score.nonzero()  # [N, 2] row of the plan, place in its query
            hidden = hidden[slot[:, 0], slot[:, 1] - int(self.model.spec.shifted_logits)]
            rows, positions = plan.rows[slot[:, 0]], plan.query[slot[:, 0], slot[:, 1]] - state.prompt_width
            with self.watch("score"):
                for places in torch.arange(len(rows), device=device).split(self.positions_at_a_time):
                    at = rows[places], positions[places]
                    logits, draw = self._logits(hidden[places], at[0])
                    tokens[at], sure, found = propose(logits, draw, self.needs)
                    confidence[at] = sure.float()
                    for name, values in found.items():
                        extras[name][at] = values.float()
                    if "logits" in self.needs:
                        kept.append((at[0] * shape[1] + at[1], logits, draw.noise))
            valid[rows, positions] = True
        broken = (~confidence.isfinite()).any(1)
        valid, confidence = valid & ~broken[:, None], confidence.masked_fill(broken[:, None], 0)
        prediction = Prediction(tokens, confidence, valid, extras)
        return replace(state, forwards=forwards), self._with_logits(prediction, kept) if kept else prediction, broken

    def _logits(self, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Draw]:
        logits = widened(self.model.score(hidden))
        logits[:, self.model.spec.mask_id] = -torch.inf
        if self.sampling.temperature == 0:
            return logits, Draw(self.sampling)
        counts = torch.bincount(rows, minlength=len(self.generators)).tolist()
        return logits, Draw(self.sampling, gumbel(counts, self.generators, logits.shape[-1]).to(logits.device))

    def _with_logits(self, prediction: Prediction, kept: list[tuple[Tensor, Tensor, Tensor | None]]) -> Prediction:
        """Logits and noise of all plans in row-major order of `valid`."""
        place = torch.cat([entry[0] for entry in kept])
        order = place.argsort()
        order = order[prediction.valid.flatten()[place[order]]]
        noise = None if kept[0][2] is None else torch.cat([entry[2] for entry in kept if entry[2] is not None])[order]
        return replace(prediction, logits=torch.cat([entry[1] for entry in kept])[order], draw=Draw(self.sampling, noise))
