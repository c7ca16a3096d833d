"""Where to commit: each window of one row is the range of positions start, ..., stop - 1.

`before` gives the window for the forward, `after` the window for the commit, once the proposals are known. The two
differ for AdaBlock alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tests.reference.row import Proposals, Row

Bounds = tuple[int, int]


class Places(Protocol):
    """What `decode_row` needs of a window; one object serves one row."""

    def before(self, row: Row) -> Bounds:
        """The window in which the forward should give proposals."""

    def after(self, row: Row, proposals: Proposals) -> Bounds:
        """The window in which the rule commits."""


class Blocks:
    """LLaDA: blocks of one length, counted from the end of the prompt; the first with a mask is the current one."""

    def __init__(self, block_length: int) -> None:
        self.block_length = block_length

    def before(self, row: Row) -> Bounds:
        start = 0
        while not any(row.masked[start : start + self.block_length]):
            start += self.block_length
        return start, min(start + self.block_length, row.gen_length)

    def after(self, row: Row, proposals: Proposals) -> Bounds:
        return self.before(row)


class AdaBlock:
    """AdaBlock: the forward that opens a block says where it ends.

    The search covers a quarter of the canvas from the block's start. Among the proposals in it that are delimiters the
    most confident one ends the block, inclusively, if its confidence is at least the delimiter threshold. Else the
    block has the default length.
    """

    def __init__(self, delimiters: Sequence[int], block_length: int, delimiter_threshold: float) -> None:
        self.delimiters = delimiters
        self.block_length = block_length
        self.delimiter_threshold = delimiter_threshold
        self.current = (0, 0)
        self.opens = True

    def before(self, row: Row) -> Bounds:
        start, stop = self.current
        self.opens = not any(row.masked[start:stop])
        if self.opens:
            start = row.first_mask()
            self.current = (start, row.gen_length)  # the end is known after the forward
        return self.current

    def after(self, row: Row, proposals: Proposals) -> Bounds:
        if self.opens:
            start = self.current[0]
            self.current = (start, self.end(row, start, proposals))
        return self.current

    def end(self, row: Row, start: int, proposals: Proposals) -> int:
        """Where the block that opens at `start` ends."""
        best = None
        for position in range(start, min(start + int(0.25 * row.gen_length), row.gen_length)):
            token, confidence = proposals[position]
            if token in self.delimiters and (best is None or confidence > proposals[best][1]):
                best = position
        if best is not None and proposals[best][1] >= self.delimiter_threshold:
            return best + 1
        return min(start + self.block_length, row.gen_length)


class DSB:
    """DSB: from the leftmost mask to block_length + (tokens decided before there); const limits it to block_length."""

    def __init__(self, block_length: int, mode: str) -> None:
        self.block_length = block_length
        self.mode = mode

    def before(self, row: Row) -> Bounds:
        start = row.first_mask()
        stop = self.block_length
        while stop < row.gen_length and self.block_length + row.masked[:stop].count(False) > stop:
            stop += 1
        limit = row.gen_length if self.mode == "greedy" else start + self.block_length
        return start, min(stop, limit, row.gen_length)

    def after(self, row: Row, proposals: Proposals) -> Bounds:
        return self.before(row)


class Lookahead:
    """APD: from the leftmost mask, `length` positions; None is the rest of the canvas."""

    def __init__(self, length: int | None) -> None:
        self.length = length

    def before(self, row: Row) -> Bounds:
        start = row.first_mask()
        stop = row.gen_length if self.length is None else min(start + self.length, row.gen_length)
        return start, stop

    def after(self, row: Row, proposals: Proposals) -> Bounds:
        return self.before(row)
