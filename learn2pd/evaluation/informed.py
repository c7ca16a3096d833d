"""What the policies that know the answers receive in a comparison.

A policy says what it must know by the parameters of its constructor, which the registry fills in by their names:
`reference` (the answers with one token a step), `still_right` (continues canvases and judges, see policies/search.py)
and `labelled` (labels proposals, see policies/label_oracle.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learn2pd.continuing import Continuer, Referee, by_check, by_continuation
from learn2pd.data.prompts import Prompt, encoded
from learn2pd.data.tasks import Checker
from learn2pd.decoding import answer_lengths
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.registry import Provided


@dataclass(frozen=True)
class Continuation:
    """Continues canvases with one token a step and judges the answers.

    Attributes:
        model: The model.
        prompts: The tokens of every prompt of the caller's list.
        method: The method of one token a step.
        right: Says whether an answer is right, from the number of the prompt and the text of the answer.
        gen_length: G, the length of the canvas in tokens.
        batch_size: The rows that are decoded together.
        given: [N, G] long, the tokens that the caller gave for each prompt, -1 elsewhere; None where none was.
    """

    model: Model
    prompts: Sequence[Sequence[int]]
    method: Method
    right: Callable[[int, str], bool]
    gen_length: int
    batch_size: int
    given: Tensor | None = None

    @functools.cached_property
    def referee(self) -> Referee:
        """The referee that continues with the method alone."""
        continuer = Continuer(self.model, self.prompts, self.method, self.gen_length, self.batch_size, self.given)
        return Referee([continuer], self.right)

    def __call__(self, index: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Continue canvases, as `StillRight` says."""
        right, _, forwards = self.referee(index, canvas)
        return right, forwards

    def label(
        self, labels: str, index: Tensor, canvas: Tensor, proposals: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Label proposals, as `Labelled` says."""
        if labels == "continuation":
            labelled = by_continuation(self.referee.continuers[0], index, canvas, proposals)
        else:
            together = asked if labels == "checked_together" else None
            labelled = by_check(self.referee, index, canvas, proposals, asked, together)
        return labelled.right, labelled.forwards


def no_answers(gen_length: int) -> Provided:
    """Return what these policies receive where they are only checked and not run.

    Args:
        gen_length: length of the canvas, in tokens.
    """
    none = torch.zeros(0, gen_length, dtype=torch.long)
    return {"reference": lambda: none, "still_right": lambda: None, "labelled": lambda: None}


def known_answers(
    model: Model,
    prompts: Sequence[Prompt],
    checkers: Mapping[str, Checker],
    method: Method,
    reference: Tensor,
    given: Tensor | None,
    batch_size: int,
) -> Provided:
    """Return what these policies receive about the prompts of one task.

    Args:
        model: the model.
        prompts: the N prompts.
        checkers: the checkers by the names of their tasks.
        method: the method of the policy; its other components also decode the continuations.
        reference: [N, G] long, the answers with one token a step.
        given: [N, G] long, the tokens that stand from the start, -1 elsewhere; None where there are none.
        batch_size: rows that are continued together.
    """

    def continuation() -> Continuation:
        one_a_step = replace(method, policy=FixedPolicy())
        right = _right(model, prompts, checkers, reference)
        return Continuation(model, encoded(model, prompts), one_a_step, right, reference.shape[1], batch_size, given)

    return {"reference": lambda: reference, "still_right": continuation, "labelled": lambda: continuation().label}


def _right(
    model: Model, prompts: Sequence[Prompt], checkers: Mapping[str, Checker], reference: Tensor
) -> Callable[[int, str], bool]:
    """Return a function that says whether the checker calls an answer right, or it is that of one token a step."""
    lengths = answer_lengths(reference, model.spec.eot_ids).tolist()
    texts = [model.text(row[:length]) for row, length in zip(reference, lengths, strict=True)]

    def right(number: int, text: str) -> bool:
        prompt = prompts[number]
        return text == texts[number] or (
            prompt.task is not None and checkers[prompt.task].check(prompt.facts, text).correct
        )

    return right
