"""Answers with gaps: parts of the answer that the caller writes, and numbers of positions that the model fills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.kinds import matches, plain
from learn2pd.models.loading import Model

EXPECTED = "a list of texts, numbers of positions to fill, and at its end perhaps None for all positions that are left"


def given_tokens(model: Model, answers: Sequence[Any], gen_length: int) -> Tensor:
    """Turn answers with gaps into the tokens that are given.

    Args:
        model: The model.
        answers: One entry for each prompt. None gives nothing. A list holds the parts of the answer in order: a text
            stands as it is, a whole number is that many positions which the model fills, and None, as the last part,
            is all positions that are left. Without this last part the answer ends behind the last one.
        gen_length: G, the tokens of the canvas.

    Returns:
        [N, G] long, the tokens that are given, -1 where the model decodes.

    Raises:
        UserError: An answer is of another type, has no gap, or is longer than the canvas.
    """
    if not isinstance(answers, list | tuple):
        raise UserError(
            f"given is of type {type(answers).__name__}: expected a list with one entry for each prompt, or a tensor"
        )
    rows = [_row(model, answer, number, gen_length) for number, answer in enumerate(answers)]
    return torch.tensor(rows, dtype=torch.long).view(len(rows), gen_length)


def _row(model: Model, answer: Any, number: int, gen_length: int) -> list[int]:
    if answer is None:
        return [-1] * gen_length
    subject = f"given {number}"
    if not isinstance(answer, list | tuple) or not answer:
        raise UserError(f"{subject}: {answer!r} is no answer with gaps: expected {EXPECTED}")
    open_end = answer[-1] is None
    tokens: list[int] = []
    for part in map(plain, answer[:-1] if open_end else answer):
        if isinstance(part, str):
            tokens += model.encode_text(part, subject)
        elif matches(part, int) and 1 <= part <= gen_length:
            tokens += [-1] * part
        else:
            raise UserError(f"{subject}: the part {part!r} is not allowed: expected {EXPECTED}")
    left = gen_length - len(tokens)
    if left < 0:
        raise UserError(
            f"{subject}: its parts are {len(tokens)} tokens long: raise gen_length={gen_length} or shorten them"
        )
    if -1 not in tokens and not (open_end and left):
        raise UserError(
            f"{subject}: the model has no position to fill: put a number of positions between the texts, "
            "or None behind the last one"
        )
    return tokens + [-1 if open_end else model.spec.eot_ids[0]] * left
