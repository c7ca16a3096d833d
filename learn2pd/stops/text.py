"""End an answer at a text, such as a blank line or the next question. The rule is this project's own.

The rule: a row ends behind the token that completes the first of the texts, as soon as that token and every position
before it are committed; and, as with the rule `eot`, behind a committed end-of-text. The answer's text ends before the
text that stopped it.

The rule waits for the masks before the text, so that the answer is what it would be without the rule, up to that text.
(A policy that takes commits back may still change it.) The tokenizer reads the tokens, as it does for the final answer,
so a text may begin or end inside a token. The reading is done on the CPU, in every step and for every row whose
committed beginning has grown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.loop.crossing import upload
from learn2pd.stops.eot import EotStop
from learn2pd.tensors import may_end
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction

if TYPE_CHECKING:
    from learn2pd.method import Method


class TextStop(EotStop):
    """End where one of some texts is committed. The answer ends before it.

    Args:
        strings: One text or several. None of them is empty.
        floor: The least confidence of a committed end-of-text that ends a row, as for `EotStop`.

    Raises:
        ValueError: There is no text, or one is empty, or the floor is out of range.
    """

    name = "text"

    def __init__(self, strings: str | list[str], floor: float = 0.5) -> None:
        super().__init__(floor)
        self.strings = [strings] if isinstance(strings, str) else list(strings)
        if not self.strings or not all(self.strings):
            raise ValueError(f"strings={strings!r}: expected one text or a list of texts, none of them empty")

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        if spec.text_of is None:
            raise UserError(f"stop rule {self.name!r} reads the tokens as text, and {spec.name} has no tokenizer")

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: None) -> Tensor:
        text_of = state.spec.text_of
        assert text_of is not None
        after = state.written(commit, prediction.tokens)
        described = torch.cat((_beginning(state), _beginning(after), after.canvas), dim=1).tolist()
        ends = [
            tokens_until(row[:length], self.strings, text_of)
            if length > known and holds(text_of(row[:length]), self.strings)
            else state.gen_length
            for known, length, *row in described
        ]
        end = upload(torch.tensor(ends), state.end.device)
        return torch.minimum(end, super().ends(state, prediction, commit, memory))

    def final_text(self, text: str) -> str:
        places = [place for place in map(text.find, self.strings) if place >= 0]
        return text[: min(places)] if places else text


def tokens_until(tokens: list[int], strings: Sequence[str], text_of: Callable[[Sequence[int]], str]) -> int:
    """Count the tokens up to the one that completes one of some texts.

    Args:
        tokens: The tokens of an answer.
        strings: The texts.
        text_of: The function that turns token ids into text.

    Returns:
        The least number of tokens whose text holds one of the texts; the number of all tokens where none is held.
    """
    least, most = 1, len(tokens)
    while least < most:
        middle = (least + most) // 2
        if holds(text_of(tokens[:middle]), strings):
            most = middle
        else:
            least = middle + 1
    return most


def holds(text: str, strings: Sequence[str]) -> bool:
    """Say whether a text holds one of some texts."""
    return any(string in text for string in strings)


def _beginning(state: DecodeState) -> Tensor:
    """Count the positions of each row [B, 1] before the first that is not decided, or where an end-of-text ends it."""
    return (state.decided & ~may_end(state, state.canvas)).long().cumprod(1).sum(1, keepdim=True)
