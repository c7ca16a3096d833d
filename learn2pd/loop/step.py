"""Runs the forward plans of a step and gathers their proposals; holds the loop's only forward counter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learn2pd.loop.proposals import EXTRAS, propose, restrict_ids, row_generators, row_noise
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.kv import KVStore
from learn2pd.tensors import widened
from learn2pd.types import DecodeState, Draw, ForwardPlan, Prediction, Sampling

SCORE_VALUES = 2**23  # logits held at a time: 66 positions at LLaDA's vocabulary, 32 MiB in float32
LEAVE_ONE_OUT = "leave_one_out"


@dataclass
class _Gathered:
    """Proposals of a step, filled plan by plan; [B, G] each."""

    tokens: Tensor
    confidence: Tensor
    valid: Tensor
    extras: dict[str, Tensor]
    logits: list[tuple[Tensor, Tensor, Tensor | None]]  # place in the batch [N], logits [N, V], noise [N, V]


class ForwardStep:
    """The model's part of a step.

    Args:
        model: the model.
        store: of keys and values; None where the cache keeps nothing.
        needs: extras that the components of the method ask for.
        sampling: how tokens are drawn.
        watch: is told how long the parts take.
    """

    def __init__(
        self, model: ModelAdapter, store: KVStore | None, needs: frozenset[str], sampling: Sampling, watch: Stopwatch
    ) -> None:
        self.model = model
        self.store = store
        self.needs = needs
        self.sampling = sampling
        self.watch = watch
        self.positions_at_a_time = max(1, SCORE_VALUES // model.spec.vocab_size)

    def __call__(self, state: DecodeState, plans: Sequence[ForwardPlan]) -> tuple[DecodeState, Prediction, Tensor]:
        """Run the plans.

        Returns:
            The state with its forwards counted, the proposals, and [B] bool: rows whose logits were not finite and so have none.
        """
        shape, device = state.masked.shape, state.masked.device
        names = [name for name in (*EXTRAS, LEAVE_ONE_OUT) if name in self.needs]
        gathered = _Gathered(
            tokens=torch.zeros_like(state.canvas),
            confidence=torch.zeros(shape, device=device),
            valid=torch.zeros_like(state.masked),
            extras={name: torch.zeros(shape, device=device) for name in names},
            logits=[],
        )
        generators = row_generators(state) if self.sampling.temperature else []
        forwards, columns = state.forwards.clone(), state.columns.clone()
        for plan in plans:
            if LEAVE_ONE_OUT in self.needs:
                plan = with_shadows(plan, state)
            with self.watch("forward"):
                hidden = self.model.forward(state.tokens, plan, self.store)  # [R, Q + S, D]
            forwards[plan.rows] += 1
            columns[plan.rows] += plan.columns
            self._score(state, plan, hidden, gathered, generators)
            if plan.shadow is not None:
                self._score_shadows(state, plan, plan.shadow, hidden[:, plan.query.shape[1] :], gathered)
        broken = (~gathered.confidence.isfinite()).any(1)
        valid, confidence = gathered.valid & ~broken[:, None], gathered.confidence.masked_fill(broken[:, None], 0)
        prediction = Prediction(gathered.tokens, confidence, valid, gathered.extras)
        if gathered.logits:
            prediction = self._with_logits(prediction, gathered.logits)
        return replace(state, forwards=forwards, columns=columns), prediction, broken

    def _score(
        self,
        state: DecodeState,
        plan: ForwardPlan,
        hidden: Tensor,
        gathered: _Gathered,
        generators: Sequence[torch.Generator],
    ) -> None:
        """Proposals of the columns that the plan scores, a few at a time: the logits of all of them may not fit into memory."""
        slot = plan.score.nonzero()  # [N, 2] row of the plan, place in its query
        hidden = hidden[slot[:, 0], slot[:, 1] - int(self.model.spec.shifted_logits)]
        rows = plan.rows[slot[:, 0]]
        positions = plan.query[slot[:, 0], slot[:, 1]] - state.prompt_width
        with self.watch("score"):
            for places in torch.arange(len(rows), device=hidden.device).split(self.positions_at_a_time):
                at = rows[places], positions[places]
                logits = self._logits(hidden[places], state, at)
                draw = Draw(self.sampling, row_noise(at[0], generators, logits.shape[-1]) if generators else None)
                gathered.tokens[at], confidence, extras = propose(logits, draw, self.needs)
                gathered.confidence[at] = confidence.float()
                for name, values in extras.items():
                    gathered.extras[name][at] = values.float()
                if "logits" in self.needs:
                    gathered.logits.append((at[0] * state.gen_length + at[1], logits, draw.noise))
        gathered.valid[rows, positions] = True

    def _score_shadows(
        self, state: DecodeState, plan: ForwardPlan, shadow: Tensor, hidden: Tensor, gathered: _Gathered
    ) -> None:
        """The probability of each token of the shadow columns, given every token but itself."""
        with self.watch("score"):
            rows = plan.rows[:, None].expand_as(shadow).flatten()
            positions = shadow.flatten() - state.prompt_width
            for places in torch.arange(len(rows), device=hidden.device).split(self.positions_at_a_time):
                at = rows[places], positions[places]
                logits = self._logits(hidden.flatten(0, 1)[places], state, at)
                token = state.canvas[at][:, None]
                gathered.extras[LEAVE_ONE_OUT][at] = logits.log_softmax(-1).gather(1, token)[:, 0].exp().float()

    def _logits(self, hidden: Tensor, state: DecodeState, at: tuple[Tensor, Tensor]) -> Tensor:
        """[N, V] in at least float32: the mask token, and what a position may not hold, at -inf."""
        logits = widened(self.model.score(hidden))
        logits[:, self.model.spec.mask_id] = -torch.inf
        return logits if state.allowed is None else restrict_ids(logits, state.allowed[at])

    def _with_logits(self, prediction: Prediction, parts: list[tuple[Tensor, Tensor, Tensor | None]]) -> Prediction:
        """Logits and noise of all plans in row-major order of `valid`."""
        place = torch.cat([part[0] for part in parts])
        order = place.argsort()
        order = order[prediction.valid.flatten()[place[order]]]
        noise = None if parts[0][2] is None else torch.cat([part[2] for part in parts if part[2] is not None])[order]
        return replace(
            prediction, logits=torch.cat([part[1] for part in parts])[order], draw=Draw(self.sampling, noise)
        )


def with_shadows(plan: ForwardPlan, state: DecodeState) -> ForwardPlan:
    """The plan with a shadow column for every committed position of its rows' windows."""
    committed = (state.window.mask(state.gen_length) & ~state.masked & ~state.given)[plan.rows]
    width = int(committed.sum(1).max())  # one wait for the device
    if not width:
        return plan
    first = committed.int().argsort(dim=1, descending=True, stable=True)[
        :, :width
    ]  # [R, S] committed positions, then others
    counts = committed.sum(1)
    some = torch.where(counts > 0, first[:, 0], 0)[:, None]
    position = torch.where(torch.arange(width, device=first.device) < counts[:, None], first, some)
    return replace(plan, shadow=position + state.prompt_width, columns=plan.columns + counts)
