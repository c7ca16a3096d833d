"""The requests of one method that are decoded together. Each step, rows may join and leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.decoding import answer_lengths
from learn2pd.errors import UserError
from learn2pd.loop.loop import Loop
from learn2pd.loop.run import Run
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.serving.transcript import Transcript
from learn2pd.stops.text import TextStop
from learn2pd.types import GREEDY, DecodeState, Sampling, row_seeds


@dataclass(frozen=True)
class Request:
    """One prompt and how it is answered.

    Attributes:
        ids: The token ids of the prompt.
        gen_length: The tokens of the canvas.
        method: Policy, scheduler, cache and stop rule, for which `Method.check` passed.
        sampling: How tokens are drawn.
        seed: The seed of the request's own draws; the answer is that of `decode` with this seed.
        stop_strings: The texts before which the answer ends.
        streams: Whether the caller wants the text piece by piece.
    """

    ids: Sequence[int]
    gen_length: int
    method: Method
    sampling: Sampling = GREEDY
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    streams: bool = False

    @property
    def group(self) -> tuple[Method, Sampling, int]:
        """What requests must share to be decoded together."""
        return self.method, self.sampling if self.sampling.temperature else GREEDY, self.gen_length


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        text: The text, without the text that stopped it.
        tokens: The number of its tokens.
        forwards: The forwards of the model in which the request took part.
        columns: The columns that those forwards computed.
        ended: True where the model or a stop string ended the answer, False where the canvas was full.
    """

    text: str
    tokens: int
    forwards: int
    columns: int
    ended: bool


Event = str | Answer | UserError  # a piece of the text, the end, or what went wrong


class Ticket:
    """A request on its way.

    Args:
        request: The request.
        on_event: It receives the events of the request, in the thread of the engine. An `Answer` or a `UserError` is
            the last one.

    Attributes:
        open: False when the answer was given, an error was told or the caller has left.
    """

    def __init__(self, request: Request, on_event: Callable[[Event], object]) -> None:
        self.request = request
        self.on_event = on_event
        self.open = True

    def close(self, event: Answer | UserError) -> None:
        """Tell the last event."""
        if self.open:
            self.open = False
            self.on_event(event)


class Batch:
    """The requests of one group that are decoded together.

    Args:
        model: The model.
        first: One of the requests, from which method, sampling and length of the canvas are taken.
    """

    def __init__(self, model: Model, first: Request) -> None:
        self.model = model
        self.method = first.method
        self.gen_length = first.gen_length
        self.loop = Loop(model.adapter, first.method, sampling=first.group[1])
        self.run: Run | None = None
        self.rows: list[tuple[Ticket, Transcript]] = []  # in the order of the rows of the run

    @property
    def open_rows(self) -> int:
        """The number of requests that have no answer yet."""
        return sum(ticket.open for ticket, _ in self.rows)

    def step(self, newcomers: Sequence[Ticket]) -> None:
        """Take one step with all requests, and tell each of them what is new.

        Args:
            newcomers: The requests that join.

        Raises:
            UserError: As for `Loop.goes_on`.
        """
        self._regroup(newcomers)
        if self.run is None:
            return
        self.run = self.loop.step(self.run)
        self.loop.goes_on(self.run)
        self._tell(self.run.state)

    def _regroup(self, newcomers: Sequence[Ticket]) -> None:
        """Take out the rows that are closed and put in the new ones."""
        stays = [ticket.open for ticket, _ in self.rows]
        if not newcomers and all(stays):
            return
        parts = (
            [self.run.rows(torch.tensor(stays, device=self.model.adapter.device))] if self.run and any(stays) else []
        )
        if newcomers:
            parts.append(self.loop.start(self._state([ticket.request for ticket in newcomers])))
        self.run = Run.stack(parts) if parts else None
        self.rows = [row for row in self.rows if row[0].open]
        self.rows += [(ticket, self._transcript(ticket.request)) for ticket in newcomers]

    def _state(self, requests: Sequence[Request]) -> DecodeState:
        return DecodeState.start(
            [request.ids for request in requests],
            self.gen_length,
            self.model.spec,
            seed=[row_seeds(request.seed, [0])[0] for request in requests],  # as `decode` does for one prompt
            device=self.model.adapter.device,
        )

    def _transcript(self, request: Request) -> Transcript:
        text_of = self.model.spec.text_of
        assert text_of is not None
        rule = self.method.stop
        strings = (*request.stop_strings, *(rule.strings if isinstance(rule, TextStop) else ()))
        return Transcript(text_of, strings, rule.final_text)

    def _tell(self, state: DecodeState) -> None:
        """Tell every request what its row has settled in this step."""
        lengths = answer_lengths(state.canvas, self.model.spec.eot_ids)
        settled = torch.minimum(settled_positions(state, self.method.policy.revisions), lengths)
        counts = torch.stack((settled, lengths, state.open, state.failed, state.forwards, state.columns), 1).tolist()
        canvas = state.canvas.tolist()
        for (ticket, transcript), (known, length, is_open, failed, forwards, columns), tokens in zip(
            self.rows, counts, canvas, strict=True
        ):
            request = ticket.request
            if not ticket.open:
                continue
            if failed:
                ticket.close(UserError(f"{self.model.spec.name} gave logits that are not finite"))
                continue
            if request.streams or request.stop_strings or not is_open:
                transcript.grow(tokens[:known])
            ended = transcript.stopped or not is_open
            if request.streams and (piece := transcript.news(last=ended)):
                ticket.on_event(piece)
            if ended:
                whole = transcript.stopped or length < self.gen_length
                ticket.close(Answer(transcript.text, transcript.length, forwards, columns, whole))


def settled_positions(state: DecodeState, revisions: int) -> Tensor:
    """Count the positions from the left that no later step changes.

    Args:
        state: The state after a step.
        revisions: `Policy.revisions`. While they last, the policy may change what is committed in its window and behind
            it.

    Returns:
        [B] long.
    """
    written = torch.where(state.masked.any(1), state.leftmost_mask, state.gen_length)
    changes = state.open & (state.step < revisions)
    return torch.where(changes, torch.minimum(written, state.window.start), written)
