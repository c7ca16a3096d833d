"""Continuing of half-decoded canvases, and judging of the answers to which they lead.

From a state of a decode, a method writes the rest of the answer. Labels of recordings (recording/labels.py) and oracles
of comparisons (evaluation/informed.py) ask what it writes, and whether the answer is right.

In the shapes, R is the number of canvases and G of positions of a canvas. A canvas is [G] long, with `OPEN` at the
positions that are still to decode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learn2pd.decoding import answer_lengths
from learn2pd.loop.loop import decode_batch
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.tensors import after_first, may_end
from learn2pd.types import DecodeState

OPEN = -1  # stands in a canvas at the positions that are still to decode


@dataclass(frozen=True)
class Continuer:
    """Continues canvases with a method.

    An end-of-text that was committed has closed the positions behind it, as the stop rule `eot` does.

    Attributes:
        model: The model.
        prompts: The tokens of every prompt of the caller's list.
        method: The method, such as one token a step.
        gen_length: G, the length of the canvas in tokens.
        batch_size: The rows that are decoded together.
        given: [N, G] long, the tokens that the caller gave for each prompt, `OPEN` elsewhere; None where none was.
    """

    model: Model
    prompts: Sequence[Sequence[int]]
    method: Method
    gen_length: int
    batch_size: int
    given: Tensor | None = None

    def __call__(self, index: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Continue canvases.

        Args:
            index: [R] long, the number of each row's prompt in the caller's list.
            canvas: [R, G] long, the committed tokens, `OPEN` at positions that are still to decode.

        Returns:
            [R, G] long, the finished canvases, in which everything behind the first end-of-text is end-of-text; and
            [R] long, the forwards. Equal rows are continued once, and their forwards are counted at one of them.
        """
        if not len(index):
            return canvas, torch.zeros_like(index)
        described = torch.cat((index[:, None], canvas), dim=1).cpu()
        distinct, place = torch.unique(described, dim=0, return_inverse=True)
        tokens = torch.empty_like(distinct[:, 1:])
        forwards = torch.zeros(len(distinct), dtype=torch.long)
        left = (distinct == OPEN).sum(1)
        for rows in left.argsort(stable=True).split(self.batch_size):  # rows with as many masks end together
            final = decode_batch(self.model.adapter, self._state(distinct[rows, 0], distinct[rows, 1:]), self.method)
            tokens[rows] = final.canvas.cpu()
            forwards[rows] = final.forwards.cpu()
        first = torch.full((len(distinct),), len(place)).scatter_reduce(0, place, torch.arange(len(place)), "amin")
        counted = torch.zeros(len(place), dtype=torch.long).index_put((first,), forwards)
        return self._filled(index.cpu(), tokens[place]).to(canvas.device), counted.to(canvas.device)

    def _state(self, numbers: Tensor, canvas: Tensor) -> DecodeState:
        """Return the state of a run that has come so far."""
        spec = self.model.spec
        state = DecodeState.start(
            [list(self.prompts[number]) for number in numbers.tolist()],
            self.gen_length,
            spec,
            index=numbers.tolist(),
            given=canvas,
            device=self.model.adapter.device,
        )
        given = torch.zeros_like(state.given) if self.given is None else self._given(numbers).to(state.given.device)
        committed = state.given & ~given
        state = replace(state, given=given)
        return state.close(after_first(committed & may_end(state, state.canvas)), self.method.stop.cuts)

    def _given(self, numbers: Tensor) -> Tensor:
        assert self.given is not None
        return self.given[numbers] != OPEN

    def _filled(self, numbers: Tensor, tokens: Tensor) -> Tensor:
        """Put end-of-text behind the first end-of-text."""
        given = None if self.given is None else self._given(numbers)
        lengths = answer_lengths(tokens, self.model.spec.eot_ids, given)
        behind = torch.arange(self.gen_length) > lengths[:, None]
        return tokens.masked_fill(behind, self.model.spec.eot_ids[0])

    def texts(self, index: Tensor, tokens: Tensor) -> list[str]:
        """Return the texts of answers.

        Args:
            index: [R] long, the numbers of their prompts.
            tokens: [R, G] long, the finished canvases.
        """
        given = None if self.given is None else self._given(index.cpu())
        lengths = answer_lengths(tokens.cpu(), self.model.spec.eot_ids, given).tolist()
        return [self.model.text(row[:length]) for row, length in zip(tokens.cpu(), lengths, strict=True)]


@dataclass(frozen=True)
class Referee:
    """Says of canvases whether a continuation of them is right.

    Attributes:
        continuers: They continue one after another, until an answer is right. The cheapest stands first.
        right: Says whether an answer is right, from the number of the prompt and the text of the answer.
        wordings: The texts that were judged, by the number of their prompt, with the verdict.
    """

    continuers: Sequence[Continuer]
    right: Callable[[int, str], bool]
    wordings: dict[int, dict[str, bool]] = field(default_factory=dict)

    def __call__(self, index: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Continue canvases and judge the answers.

        Args:
            index: [R] long, the numbers of the prompts.
            canvas: [R, G] long, the committed tokens, `OPEN` at positions that are still to decode.

        Returns:
            [R] bool, whether an answer is right; [R, G] long, the answer that is right, or the last one that is wrong;
            and [R] long, the forwards.
        """
        right = torch.zeros(len(index), dtype=torch.bool, device=index.device)
        forwards = torch.zeros_like(index)
        tokens = canvas
        for continuer in self.continuers:
            rows = (~right).nonzero()[:, 0]
            answers, taken = continuer(index[rows], canvas[rows])
            verdicts = self._judged(index[rows].tolist(), continuer.texts(index[rows], answers))
            tokens = tokens.index_put((rows,), answers)
            forwards = forwards.index_add(0, rows, taken)
            right = right.index_put((rows,), torch.tensor(verdicts, dtype=torch.bool, device=index.device))
        return right, tokens, forwards

    def right_wordings(self, number: int) -> list[str]:
        """Return the texts that were judged right so far, sorted.

        Args:
            number: The number of the prompt.
        """
        return sorted(text for text, verdict in self.wordings.get(number, {}).items() if verdict)

    def _judged(self, numbers: Sequence[int], texts: Sequence[str]) -> list[bool]:
        verdicts = []
        for number, text in zip(numbers, texts, strict=True):
            known = self.wordings.setdefault(number, {})
            if text not in known:
                known[text] = self.right(number, text)
            verdicts.append(known[text])
        return verdicts


@dataclass(frozen=True)
class Labels:
    """Which proposals of some states are right.

    Attributes:
        right: [R, G] bool, the proposals that are right.
        known: [R, G] bool, the positions of which that is known.
        forwards: [R] long, the forwards that it took.
    """

    right: Tensor
    known: Tensor
    forwards: Tensor


def by_continuation(continuer: Continuer, index: Tensor, canvas: Tensor, proposals: Tensor) -> Labels:
    """Label proposals: right is what the continuation of the state writes at the position.

    Args:
        continuer: It continues the states.
        index: [R] long, the numbers of the prompts.
        canvas: [R, G] long, the committed tokens, `OPEN` at positions that are still to decode.
        proposals: [R, G] long, the proposed tokens.

    Returns:
        The labels, which are known at every position.
    """
    tokens, forwards = continuer(index, canvas)
    return Labels(proposals == tokens, torch.ones_like(proposals, dtype=torch.bool), forwards)


def by_check(
    referee: Referee,
    index: Tensor,
    canvas: Tensor,
    proposals: Tensor,
    asked: Tensor,
    together: Tensor | None = None,
) -> Labels:
    """Label proposals: right is what can be committed so that a continuation of the new state is right.

    A proposal that a right continuation of the state itself writes needs no continuation of its own. A state without a
    right continuation is lost, whatever is committed next, and nothing about it is known.

    Args:
        referee: It continues and judges.
        index: [R] long, the numbers of the prompts.
        canvas: [R, G] long, the committed tokens, `OPEN` at positions that are still to decode.
        proposals: [R, G] long, the proposed tokens.
        asked: [R, G] bool, the masked positions whose labels are wanted.
        together: [R, G] bool, the masked positions at which proposals may be committed in one step. A proposal must
            then be right together with all of them that the right continuation of the state writes itself. None commits
            each proposal alone.

    Returns:
        The labels, which are known at the positions that were asked about, in states that are not lost.
    """
    alive, tokens, forwards = referee(index, canvas)
    known = asked & alive[:, None]
    right = known & (proposals == tokens)
    row, position = (known & ~right).nonzero(as_tuple=True)
    beside = torch.zeros_like(asked) if together is None else together & (proposals == tokens)
    tried = torch.where(beside, proposals, canvas)[row]
    tried = tried.scatter(1, position[:, None], proposals[row, position][:, None])
    verdict, _, taken = referee(index[row], tried)
    right = right.index_put((row, position), verdict)
    return Labels(right, known, forwards.index_add(0, row, taken))
