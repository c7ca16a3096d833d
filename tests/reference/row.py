"""One row while it is decoded, in positions of its canvas.

The column of a position in the whole sequence is len(prompt) + position.
"""

from __future__ import annotations

from dataclasses import dataclass

Proposals = dict[int, tuple[int, float]]  # position or column -> token and confidence


@dataclass
class Row:
    """The state of one row.

    Attributes:
        prompt: Token ids.
        canvas: Token ids, the mask token where nothing was committed.
        masked: Whether a position is still to be decoded.
        committed_at: The step in which a position was committed, -1 before.
        forwards: Calls of the model so far, which is also the number of the step.
    """

    prompt: list[int]
    canvas: list[int]
    masked: list[bool]
    committed_at: list[int]
    forwards: int = 0

    @classmethod
    def start(cls, prompt: list[int], gen_length: int, mask_id: int) -> Row:
        """A row with nothing but masks behind its prompt."""
        return cls(prompt, [mask_id] * gen_length, [True] * gen_length, [-1] * gen_length)

    @property
    def gen_length(self) -> int:
        """The length of the canvas."""
        return len(self.canvas)

    @property
    def ids(self) -> list[int]:
        """Prompt and canvas."""
        return self.prompt + self.canvas

    def first_mask(self) -> int:
        """The leftmost position that is still to be decoded."""
        return self.masked.index(True)

    def write(self, position: int, token: int) -> None:
        """Commit a token in the current step."""
        self.canvas[position] = token
        self.masked[position] = False
        self.committed_at[position] = self.forwards
