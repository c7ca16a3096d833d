"""The judge of the search oracle (policies/search.py): it continues an answer with one token a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.decoding import answer_lengths, decode
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
    """

    model: Model
    prompts: Sequence[Sequence[int]]
    method: Method
    right: Callable[[int, str], bool]
    gen_length: int
    batch_size: int

    def __call__(self, index: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Continue canvases, as `StillRight` says."""
        numbers = index.tolist()
        tokens = canvas.cpu()
        forwards = torch.zeros(len(tokens), dtype=torch.long)
        unfinished = (tokens < 0).any(1)
        if unfinished.any():
            result = decode(
                self.model,
                [list(self.prompts[number]) for number, left in zip(numbers, unfinished.tolist(), strict=True) if left],
                self.method,
                gen_length=self.gen_length,
                batch_size=self.batch_size,
                given=tokens[unfinished],
            )
            tokens = tokens.masked_scatter(unfinished[:, None], result.tokens)
            forwards[unfinished] = result.forwards
        lengths = answer_lengths(tokens, self.model.spec.eot_ids).tolist()
        texts = [
            self.model.tokenizer.decode(row[:length], skip_special_tokens=True)
            for row, length in zip(tokens, lengths, strict=True)
        ]
        judged = [self.right(number, text) for number, text in zip(numbers, texts, strict=True)]
        return torch.tensor(judged, device=canvas.device), forwards.to(canvas.device)
