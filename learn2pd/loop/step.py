"""The model's part of a step: it runs the forward plans, gathers their proposals and counts forwards and columns.

Nothing else in the package counts forwards. The plans lie on the host, so that how much a step computes is known
without waiting for the device. In the shapes, B is the number of rows of the batch, G of canvas positions, R of rows of
a plan, Q of its query columns, S of its shadow columns, M of the most scored columns of a row, N of scored positions, V
of tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from learn2pd.loop.attention import AttentionMaps, spread
from learn2pd.loop.crossing import crossed, upload
from learn2pd.loop.proposals import EXTRAS, SCORE_VALUES, propose, restrict_ids, row_generators, row_noise, standing
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.kv import KVStore
from learn2pd.tensors import widened
from learn2pd.types import DecodeState, Draw, ForwardPlan, LogitsPart, Prediction, Sampling

LEAVE_ONE_OUT = ("leave_one_out", "leave_one_out_rank", "leave_one_out_entropy")
ATTENTION = "attention"
HIDDEN = "hidden"
TOP = "top"
TOP_TOKENS = 4  # of `Prediction.top_ids`


@dataclass(frozen=True)
class _Gathered:
    """What the forwards of a step give, filled plan by plan. Each tensor is [B, G] where nothing else is said.

    Attributes:
        tokens: The proposed tokens.
        confidence: Their confidence.
        valid: The positions that were scored.
        extras: The extras by name.
        hidden: [N, D] for each plan, the hidden states of its scored positions.
        kept: The logits of all plans, where they are kept.
        top: The places in the batch [N], and the token ids and probabilities [N, 4], part by part.
        attention: [B, L, L] for each plan, where a component reads the attention.
    """

    tokens: Tensor
    confidence: Tensor
    valid: Tensor
    extras: dict[str, Tensor]
    hidden: list[Tensor] = field(default_factory=list)
    kept: list[LogitsPart] = field(default_factory=list)
    top: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Scored:
    """A plan and its scored positions. Each tensor is [N] long, and on the device where nothing else is said.

    Attributes:
        plan: The plan, on the device.
        row: The row of the plan.
        place: The place among the hidden states that the forward returns.
        rows: The row of the batch.
        positions: The generation position.
        host_rows: `rows` on the host.
        shadows: The place of the first shadow column among the hidden states.
    """

    plan: ForwardPlan
    row: Tensor
    place: Tensor
    rows: Tensor
    positions: Tensor
    host_rows: Tensor
    shadows: int


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
        self, state: DecodeState, host: DecodeState, plans: Sequence[ForwardPlan], store: KVStore | None
    ) -> tuple[DecodeState, Prediction, Tensor]:
        """Run the plans of one step.

        Args:
            state: The state before the forward, with the window that the scheduler opened.
            host: The same state on the host.
            plans: The plans that the cache made, on the host.
            store: The buffers for keys and values; None where the cache keeps nothing.

        Returns:
            The state with the forwards and columns counted, the proposals, and [B] bool, the rows whose logits were not
            finite. Such a row has no proposals.
        """
        gathered = self._nothing_gathered(state)
        scored = [self._scored(plan, host, state.masked.device) for plan in plans]
        keeps = "logits" in self.needs and sum(len(at.rows) for at in scored) <= self.positions_at_a_time
        for at in scored:
            self._run(at, state, host, store, gathered, keeps)
        broken = gathered.confidence.sum(1).isnan()  # the softmax of logits that are not finite is NaN
        nothing = broken[:, None]
        prediction = Prediction(
            gathered.tokens,
            gathered.confidence.masked_fill(nothing, 0),
            gathered.valid.masked_fill(nothing, False),
            gathered.extras,
            attention=gathered.attention[-1] if gathered.attention else None,
        )
        if "logits" in self.needs:
            kept, hidden = gathered.kept, gathered.hidden  # an observer that keeps the step keeps nothing else alive

            def again() -> Iterator[LogitsPart]:
                for states, at in zip(hidden, scored, strict=True):
                    yield from self._parts(states, at, state, host)

            prediction = replace(prediction, parts=(lambda: kept) if keeps else again)
        return _counted(state, scored), self._with_states(prediction, gathered, scored), broken

    def _nothing_gathered(self, state: DecodeState) -> _Gathered:
        """Return what is gathered before the first forward of a step."""
        zeros = torch.zeros(state.masked.shape, device=state.masked.device)
        names = [name for name in (*EXTRAS, *LEAVE_ONE_OUT) if name in self.needs]
        return _Gathered(
            tokens=torch.zeros_like(state.masked, dtype=torch.long),
            confidence=zeros,
            valid=torch.zeros_like(state.masked),
            extras={name: torch.zeros_like(zeros) for name in names},
        )

    def _run(
        self,
        at: _Scored,
        state: DecodeState,
        host: DecodeState,
        store: KVStore | None,
        gathered: _Gathered,
        keeps: bool,
    ) -> None:
        """Run the forward of a plan, and write what it gives into `gathered`.

        Args:
            at: The plan and its scored positions.
            state: The state before the forward.
            host: The same state on the host.
            store: The buffers for keys and values.
            gathered: What the forwards of the step give.
            keeps: True keeps the logits.
        """
        maps = AttentionMaps(self.model.network.config.num_hidden_layers) if ATTENTION in self.needs else None
        with maps or nullcontext(), torch.inference_mode(), self.watch("forward"):
            states = self.model.forward(state.tokens, at.plan, store)  # [R, Q + S or M + S, D]
            gathered.hidden.append(states[at.row, at.place])
        with torch.no_grad() if keeps else torch.inference_mode(), self.watch("score"):
            parts: Iterable[LogitsPart] = self._parts(gathered.hidden[-1], at, state, host)
            if keeps:
                gathered.kept.extend(parts := list(parts))
            self._propose(parts, gathered, overwrites=not keeps)
            if at.plan.shadow is not None:
                self._score_shadows(state, at.plan, at.plan.shadow, states[:, at.shadows :], gathered)
        gathered.valid[at.rows, at.positions] = True
        if maps is not None:
            gathered.attention.append(spread(maps, at.plan, state))

    def _with_states(self, prediction: Prediction, gathered: _Gathered, scored: Sequence[_Scored]) -> Prediction:
        """Add the hidden states and the most probable tokens of the valid positions, where a component reads them."""
        if HIDDEN in self.needs and gathered.hidden:
            width = prediction.valid.shape[1]
            order = _order(torch.cat([at.rows * width + at.positions for at in scored]), prediction)
            prediction = replace(prediction, hidden=torch.cat(gathered.hidden)[order])
        if gathered.top:
            places, ids, shares = (torch.cat(values) for values in zip(*gathered.top, strict=True))
            order = _order(places, prediction)
            prediction = replace(prediction, top_ids=ids[order], top_shares=shares[order])
        return prediction

    def _scored(self, plan: ForwardPlan, host: DecodeState, device: torch.device) -> _Scored:
        """Complete a plan of the host, and copy it with the places of its scored positions to the device."""
        if self.needs.intersection(LEAVE_ONE_OUT):
            plan = with_shadows(plan, host)
        shift = self.model.spec.shift
        row, place = plan.score.nonzero(as_tuple=True)
        rows = plan.rows[row]
        positions = plan.query[row, place] - host.prompt_width
        shadows = plan.query.shape[1]
        # the maps of the attention read every query
        asked = None if ATTENTION in self.needs else places_asked(plan, shift)
        if asked is None:
            place = place - shift
        else:
            plan = replace(plan, asked=asked)
            place = (plan.score.cumsum(1) - 1)[row, place]
            shadows = asked.shape[1] - (0 if plan.shadow is None else plan.shadow.shape[1])
        values = {name: value for name, value in vars(plan).items() if isinstance(value, Tensor)}
        *copies, row, place, moved, positions = crossed([*values.values(), row, place, rows, positions], device)
        copied: dict[str, Any] = dict(zip(values, copies, strict=True))
        return _Scored(replace(plan, **copied), row, place, moved, positions, rows, shadows)

    def _propose(self, parts: Iterable[LogitsPart], gathered: _Gathered, overwrites: bool) -> None:
        """Write the proposals of a plan into `gathered`.

        Args:
            parts: The logits.
            gathered: The proposals.
            overwrites: True where nobody reads the logits afterwards.
        """
        for part in parts:
            at = part.rows, part.positions
            logits = part.logits if overwrites else part.logits.clone()
            if TOP in self.needs:
                best = logits.topk(TOP_TOKENS)
                shares = (best.values - logits.logsumexp(-1, keepdim=True)).exp().float()
                place = part.rows * gathered.tokens.shape[1] + part.positions
                gathered.top.append((place, best.indices, shares))
            gathered.tokens[at], confidence, extras = propose(logits, part.draw, self.needs)
            gathered.confidence[at] = confidence.float()
            for name, values in extras.items():
                gathered.extras[name][at] = values.float()
            del part, logits  # the next part is made while a name in this loop would still hold this one

    def _score_shadows(
        self, state: DecodeState, plan: ForwardPlan, shadow: Tensor, hidden: Tensor, gathered: _Gathered
    ) -> None:
        """Write what is known of each shadow column's token, given all tokens but itself, into `gathered`.

        Args:
            state: The state before the step.
            plan: The plan.
            shadow: [R, S] long, its shadow columns.
            hidden: [R, S, D].
            gathered: The proposals.
        """
        size = self.positions_at_a_time
        rows = plan.rows[:, None].expand_as(shadow).flatten()
        positions = shadow.flatten() - state.prompt_width
        columns = (hidden.flatten(0, 1), rows, positions)
        for part, *at in zip(*(column.split(size) for column in columns), strict=True):
            described = standing(self._logits(part, state, *at), state.canvas[*at], self.needs)
            for name, values in described.items():
                gathered.extras[name][*at] = values.float()

    def _parts(self, hidden: Tensor, at: _Scored, state: DecodeState, host: DecodeState) -> Iterator[LogitsPart]:
        """Yield the logits of N positions, a few at a time, since the logits of all of them may not fit into memory.

        Args:
            hidden: [N, D].
            at: The positions.
            state: The state before the step.
            host: The same state on the host.
        """
        size = self.positions_at_a_time
        generators = row_generators(host) if self.sampling.temperature else []
        columns = (hidden, at.rows, at.positions, at.host_rows)
        for part, rows, positions, host_rows in zip(*(column.split(size) for column in columns), strict=True):
            # no name here holds the logits of a part while the next part is made
            yield self._part(part, rows, positions, host_rows, state, generators)

    def _part(
        self,
        hidden: Tensor,
        rows: Tensor,
        positions: Tensor,
        host_rows: Tensor,
        state: DecodeState,
        generators: Sequence[torch.Generator],
    ) -> LogitsPart:
        logits = self._logits(hidden, state, rows, positions)
        noise = upload(row_noise(host_rows, generators, logits.shape[-1]), logits.device) if generators else None
        return LogitsPart(rows, positions, logits, Draw(self.sampling, noise))

    def _logits(self, hidden: Tensor, state: DecodeState, rows: Tensor, positions: Tensor) -> Tensor:
        """Return logits [N, V] in at least float32, with -inf at the mask token and at ids that are not allowed.

        Args:
            hidden: [N, D].
            state: The state before the step.
            rows: [N] long, the row of each hidden state.
            positions: [N] long, the generation position of each hidden state.
        """
        logits = widened(self.model.score(hidden))
        logits[:, self.model.spec.mask_id] = -torch.inf
        return logits if state.allowed is None else restrict_ids(logits, state.allowed[rows, positions])


def _counted(state: DecodeState, scored: Sequence[_Scored]) -> DecodeState:
    """Return the state with the forwards and columns of a step counted."""
    forwards = state.forwards
    columns = state.columns
    for at in scored:
        forwards = forwards.index_add(0, at.plan.rows, torch.ones_like(at.plan.rows))
        columns = columns.index_add(0, at.plan.rows, at.plan.columns)
    return replace(state, forwards=forwards, columns=columns)


def _order(place: Tensor, prediction: Prediction) -> Tensor:
    """Return the numbers of the places [N] that are valid, in row-major order."""
    order = place.argsort()
    return order[prediction.valid.flatten()[place[order]]]


def places_asked(plan: ForwardPlan, shift: int) -> Tensor | None:
    """Return the places whose hidden states a plan needs: those of the scored and of the shadow columns.

    Args:
        plan: The plan, on the host.
        shift: 1 where the output at a column predicts the token of the next one, else 0.

    Returns:
        [R, M + S] long, the places of the scored columns of each row in their order, other places behind them, and then
        those of the shadow columns. None where all places are needed.
    """
    queries = plan.query.shape[1]
    most = max(1, int(plan.score.sum(1).max()))
    if most >= queries:
        return None
    asked = (plan.score.int().argsort(dim=1, descending=True, stable=True)[:, :most] - shift).clamp_min(0)
    if plan.shadow is None:
        return asked
    shadows = queries + torch.arange(plan.shadow.shape[1], device=asked.device)
    return torch.cat((asked, shadows.expand(len(asked), -1)), dim=1)


def with_shadows(plan: ForwardPlan, state: DecodeState) -> ForwardPlan:
    """Add a shadow column to the plan for every committed position in the windows of its rows.

    Args:
        plan: The plan without shadow columns, on the host.
        state: The state before the forward, on the host.

    Returns:
        The plan with shadow columns; the same plan where no position of a window is committed.
    """
    committed = (state.window.mask(state.gen_length) & state.decided & ~state.given)[plan.rows]
    width = int(committed.sum(1).max())
    if not width:
        return plan
    # [R, S] long, the committed positions of each row first, other positions behind them
    first = committed.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    counts = committed.sum(1)
    some = torch.where(counts > 0, first[:, 0], 0)[:, None]
    position = torch.where(torch.arange(width, device=first.device) < counts[:, None], first, some)
    return replace(plan, shadow=position + state.prompt_width, columns=plan.columns + counts)
