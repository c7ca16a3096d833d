"""What the oracles that search and those of labels must know: they continue answers with one token a step and judge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from learn2pd.continuing import Continuer, Referee, by_check, by_continuation
from learn2pd.method import Method
from learn2pd.models.loading import Model


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
