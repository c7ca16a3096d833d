"""What a forward recomputes: each class does the forwards of one row and keeps what the paper keeps.

`forward` is given the window and returns proposals; it may return proposals outside the window, which nobody may
commit. Where logits are shifted, the column before the first recomputed one is recomputed too, since its output
proposes that column's token.
"""

from __future__ import annotations

from typing import Protocol

from tests.reference.network import Columns, full_proposals, on_canvas
from tests.reference.row import Proposals, Row


class Forwards(Protocol):
    """What `decode_row` needs of a cache; one object serves one row."""

    def forward(self, row: Row, start: int, stop: int) -> Proposals:
        """The proposals of one call of the model, `start` to `stop` being the window."""


class Whole:
    """No cache, by one plain call of the network; only for models whose logits are not shifted."""

    def __init__(self, network, mask_id: int) -> None:
        self.network = network
        self.mask_id = mask_id

    def forward(self, row: Row, start: int, stop: int) -> Proposals:
        by_column = full_proposals(self.network, row.ids, self.mask_id)
        return dict(enumerate(by_column[len(row.prompt) :]))


class Everything:
    """No cache: every column is recomputed in every step."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def forward(self, row: Row, start: int, stop: int) -> Proposals:
        return part(self.columns, row, -len(row.prompt), row.gen_length, row.gen_length)


class Prefix:
    """Fast-dLLM's prefix cache: a full forward opens a block, and later ones compute it and all that follows it."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.block = -1  # start of the block that the last full forward opened

    def forward(self, row: Row, start: int, stop: int) -> Proposals:
        if start != self.block:
            self.block = start
            return part(self.columns, row, -len(row.prompt), row.gen_length, row.gen_length)
        return part(self.columns, row, start, row.gen_length, row.gen_length)


class Dual:
    """Fast-dLLM's dual cache: a full forward when a block opens; later ones compute the block alone."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.block = -1

    def forward(self, row: Row, start: int, stop: int) -> Proposals:
        if start != self.block:
            self.block = start
            return part(self.columns, row, -len(row.prompt), row.gen_length, row.gen_length)
        return part(self.columns, row, start, stop, row.gen_length)


class DSBCache:
    """DSB's cache: a full forward after every `refresh_tokens` committed tokens, and the window's region in between.

    Before the window, `prefix_window` columns are recomputed, or as many as the window's start moved in the last step
    if that is more; behind it, `suffix_window` columns are.
    """

    def __init__(self, columns: Columns, refresh_tokens: int, prefix_window: int, suffix_window: int) -> None:
        self.columns = columns
        self.refresh_tokens = refresh_tokens
        self.prefix_window = prefix_window
        self.suffix_window = suffix_window
        self.committed_at_refresh: int | None = None  # tokens committed before the last full forward
        self.last_start = 0

    def forward(self, row: Row, start: int, stop: int) -> Proposals:
        committed = row.masked.count(False)
        moved = start - self.last_start
        self.last_start = start
        if self.committed_at_refresh is None or committed - self.committed_at_refresh >= self.refresh_tokens:
            self.committed_at_refresh = committed
            return part(self.columns, row, -len(row.prompt), row.gen_length, row.gen_length)
        first = max(start - max(moved, self.prefix_window), -len(row.prompt))
        last = min(stop + self.suffix_window, row.gen_length)
        return part(self.columns, row, first, last, row.gen_length)


class LookaheadCache:
    """APD's forward: nothing behind the window exists.

    The first forward computes everything up to the window's end. Later ones compute from `kv_window` - 1 columns before
    the last step's window, so that the tokens committed in the last step are computed anew; what lies left of that is
    frozen. None freezes nothing.
    """

    def __init__(self, columns: Columns, kv_window: int | None) -> None:
        self.columns = columns
        self.kv_window = kv_window
        self.last_start: int | None = None

    def forward(self, row: Row, start: int, stop: int) -> Proposals:
        needed = start - int(self.columns.shifted)  # its output proposes the window's first token
        first = -len(row.prompt)
        if self.last_start is not None and self.kv_window is not None:
            accepted = start - self.last_start
            first = max(start - self.kv_window - accepted + 1, first)
        self.last_start = start
        return exactly(self.columns, row, min(first, needed), stop, stop)


def part(columns: Columns, row: Row, first: int, stop: int, seen: int) -> Proposals:
    """Recompute what proposes the tokens from `first` to `stop`.

    With shifted logits the position before them is needed too.
    """
    return exactly(columns, row, first - int(columns.shifted), stop, seen)


def exactly(columns: Columns, row: Row, first: int, stop: int, seen: int) -> Proposals:
    """Recompute the positions from `first` to `stop`, which attend to all positions before `seen`.

    The positions of the prompt are negative.
    """
    begin = max(len(row.prompt) + first, 0)
    end = len(row.prompt) + stop
    by_column = columns.recompute(row.ids, range(begin, end), range(len(row.prompt) + seen))
    return on_canvas(by_column, len(row.prompt))
