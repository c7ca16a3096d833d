"""The model's part of a step: it runs the forward plans, gathers their proposals and counts forwards and columns.

Nothing else in the package counts forwards. In the shapes, B is the number of rows of the batch, G of canvas positions,
R of rows of a plan, Q of its query columns, S of its shadow columns, N of scored positions, V of tokens of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learn2pd.loop.attention import AttentionMaps, spread
from learn2pd.loop.proposals import EXTRAS, SCORE_VALUES, propose, restrict_ids, row_generators, row_noise, standing
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.kv import KVStore
from learn2pd.tensors import widened
from learn2pd.types import DecodeState, Draw, ForwardPlan, Prediction, Sampling

LEAVE_ONE_OUT = ("leave_one_out", "leave_one_out_rank", "leave_one_out_entropy")
ATTENTION = "attention"
HIDDEN = "hidden"
TOP = "top"
TOP_TOKENS = 4  # of `Prediction.top_ids`


@dataclass
class _Gathered:
    """The proposals of a step, filled plan by plan. Each tensor is [B, G]."""

    tokens: Tensor
    confidence: Tensor
    valid: Tensor
    extras: dict[str, Tensor]
    logits: list[tuple[Tensor, Tensor, Tensor | None]]  # places in the batch [N], logits [N, V], noise [N, V]
    hidden: list[tuple[Tensor, Tensor]]  # places in the batch [N], hidden states [N, D]
    top: list[tuple[Tensor, Tensor, Tensor]]  # places in the batch [N], token ids and probabilities [N, 4]


class ForwardStep:
    """Runs the plans of a step.

    Args:
        model: The model.
        needs: The extras that the components of the method and the observer read.
        sampling: The rule by which tokens are drawn.
        watch: The stopwatch that counts the seconds of the parts.
    """

    def __init__(self, model: ModelAdapter, needs: frozenset[str], sampling: Sampling, watch: Stopwatch) -> None:
        self.model = model
        self.needs = needs
        self.sampling = sampling
        self.watch = watch
        self.positions_at_a_time = max(1, SCORE_VALUES // model.spec.vocab_size)

    def __call__(
        self, state: DecodeState, plans: Sequence[ForwardPlan], store: KVStore | None
    ) -> tuple[DecodeState, Prediction, Tensor]:
        """Run the plans of one step.

        Args:
            state: The state before the forward, with the window that the scheduler opened.
            plans: The plans that the cache made.
            store: The buffers for keys and values; None where the cache keeps nothing.

        Returns:
            The state with the forwards and columns counted, the proposals, and [B] bool, the rows whose logits were not
            finite. Such a row has no proposals.
        """
        shape = state.masked.shape
        device = state.masked.device
        names = [name for name in (*EXTRAS, *LEAVE_ONE_OUT) if name in self.needs]
        gathered = _Gathered(
            tokens=torch.zeros(shape, dtype=torch.long, device=device),
            confidence=torch.zeros(shape, device=device),
            valid=torch.zeros_like(state.masked),
            extras={name: torch.zeros(shape, device=device) for name in names},
            logits=[],
            hidden=[],
            top=[],
        )
        generators = row_generators(state) if self.sampling.temperature else []
        attention = None
        forwards = state.forwards
        columns = state.columns
        for plan in plans:
            if self.needs.intersection(LEAVE_ONE_OUT):
                plan = with_shadows(plan, state)
            maps = AttentionMaps(self.model.network.config.num_hidden_layers) if ATTENTION in self.needs else None
            with maps or nullcontext():
                self._run(state, plan, store, gathered, generators)
            if maps is not None:
                attention = spread(maps, plan, state)
            forwards = forwards.index_add(0, plan.rows, torch.ones_like(plan.rows))
            columns = columns.index_add(0, plan.rows, plan.columns)
        broken = gathered.confidence.sum(1).isnan()  # the softmax of logits that are not finite is NaN
        nothing = broken[:, None]
        valid = gathered.valid.masked_fill(nothing, False)
        confidence = gathered.confidence.masked_fill(nothing, 0)
        prediction = Prediction(gathered.tokens, confidence, valid, gathered.extras)
        if ATTENTION in self.needs:
            prediction = replace(prediction, attention=attention)
        if gathered.logits:
            prediction = self._with_logits(prediction, gathered.logits)
        if gathered.hidden:
            order = _order(torch.cat([place for place, _ in gathered.hidden]), prediction)
            prediction = replace(prediction, hidden=torch.cat([states for _, states in gathered.hidden])[order])
        if gathered.top:
            places, ids, shares = (torch.cat(parts) for parts in zip(*gathered.top, strict=True))
            order = _order(places, prediction)
            prediction = replace(prediction, top_ids=ids[order], top_shares=shares[order])
        return replace(state, forwards=forwards, columns=columns), prediction, broken

    @torch.inference_mode()
    def _run(
        self,
        state: DecodeState,
        plan: ForwardPlan,
        store: KVStore | None,
        gathered: _Gathered,
        generators: Sequence[torch.Generator],
    ) -> None:
        """Run a plan and write its proposals into `gathered`.

        Only here the model runs in inference mode, in which torch keeps no books. `gathered` is made outside, so that
        what a policy or an observer receives can be used in training.
        """
        with self.watch("forward"):
            hidden = self.model.forward(state.tokens, plan, store)  # [R, Q + S, D]
        self._score(state, plan, hidden, gathered, generators)
        if plan.shadow is not None:
            self._score_shadows(state, plan, plan.shadow, hidden[:, plan.query.shape[1] :], gathered)

    def _score(
        self,
        state: DecodeState,
        plan: ForwardPlan,
        hidden: Tensor,
        gathered: _Gathered,
        generators: Sequence[torch.Generator],
    ) -> None:
        """Write the proposals of the columns that the plan scores into `gathered`."""
        row, place = plan.score.nonzero(as_tuple=True)  # [N] long each, row of the plan and place in its query
        hidden = hidden[row, place - 1 if self.model.spec.shifted_logits else place]
        rows = plan.rows[row]
        positions = plan.query[row, place] - state.prompt_width
        with self.watch("score"):
            for part, at in self._parts(hidden, rows, positions):
                logits = self._logits(part, state, at)
                if TOP in self.needs:
                    best = logits.topk(TOP_TOKENS)
                    shares = (best.values - logits.logsumexp(-1, keepdim=True)).exp()
                    gathered.top.append((at[0] * state.gen_length + at[1], best.indices, shares.float()))
                draw = Draw(self.sampling, row_noise(at[0], generators, logits.shape[-1]) if generators else None)
                gathered.tokens[at], confidence, extras = propose(logits, draw, self.needs)
                gathered.confidence[at] = confidence.float()
                for name, values in extras.items():
                    gathered.extras[name][at] = values.float()
                if "logits" in self.needs:
                    gathered.logits.append((at[0] * state.gen_length + at[1], logits, draw.noise))
        if HIDDEN in self.needs:
            gathered.hidden.append((rows * state.gen_length + positions, hidden))
        gathered.valid[rows, positions] = True

    def _score_shadows(
        self, state: DecodeState, plan: ForwardPlan, shadow: Tensor, hidden: Tensor, gathered: _Gathered
    ) -> None:
        """Write what is known of each shadow column's token, given all tokens but itself, into `gathered`."""
        with self.watch("score"):
            rows = plan.rows[:, None].expand_as(shadow).flatten()
            positions = shadow.flatten() - state.prompt_width
            for part, at in self._parts(hidden.flatten(0, 1), rows, positions):
                logits = self._logits(part, state, at)
                for name, values in standing(logits, state.canvas[at], self.needs).items():
                    gathered.extras[name][at] = values.float()

    def _parts(self, hidden: Tensor, rows: Tensor, positions: Tensor) -> Iterable[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Split N positions into a few at a time, since the logits of all of them may not fit into memory.

        Args:
            hidden: [N, D].
            rows: [N] long.
            positions: [N] long.

        Returns:
            The hidden states of each part, and the row and the generation position of each of them.
        """
        size = self.positions_at_a_time
        places = zip(rows.split(size), positions.split(size), strict=True)
        return zip(hidden.split(size), places, strict=True)

    def _logits(self, hidden: Tensor, state: DecodeState, at: tuple[Tensor, Tensor]) -> Tensor:
        """Return logits [N, V] in at least float32, with -inf at the mask token and at ids that are not allowed.

        Args:
            hidden: [N, D].
            state: The state before the step.
            at: The row and the generation position of each hidden state, [N] long each.
        """
        logits = widened(self.model.score(hidden))
        logits[:, self.model.spec.mask_id] = -torch.inf
        return logits if state.allowed is None else restrict_ids(logits, state.allowed[at])

    def _with_logits(self, prediction: Prediction, parts: list[tuple[Tensor, Tensor, Tensor | None]]) -> Prediction:
        """Add the logits and the noise of all plans to the prediction, in the row-major order of `valid`."""
        order = _order(torch.cat([part[0] for part in parts]), prediction)
        noise = None if parts[0][2] is None else torch.cat([part[2] for part in parts if part[2] is not None])[order]
        logits = torch.cat([part[1] for part in parts])[order]
        return replace(prediction, logits=logits, draw=Draw(self.sampling, noise))


def _order(place: Tensor, prediction: Prediction) -> Tensor:
    """Return the numbers of the places [N] that are valid, in row-major order."""
    order = place.argsort()
    return order[prediction.valid.flatten()[place[order]]]


def with_shadows(plan: ForwardPlan, state: DecodeState) -> ForwardPlan:
    """Add a shadow column to the plan for every committed position in the windows of its rows.

    Args:
        plan: The plan without shadow columns.
        state: The state before the forward.

    Returns:
        The plan with shadow columns; the same plan where no position of a window is committed.
    """
    committed = (state.window.mask(state.gen_length) & state.decided & ~state.given)[plan.rows]
    width = int(committed.sum(1).max())  # this waits for the device
    if not width:
        return plan
    # [R, S] long, the committed positions of each row first, other positions behind them
    first = committed.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    counts = committed.sum(1)
    some = torch.where(counts > 0, first[:, 0], 0)[:, None]
    position = torch.where(torch.arange(width, device=first.device) < counts[:, None], first, some)
    return replace(plan, shadow=position + state.prompt_width, columns=plan.columns + counts)
