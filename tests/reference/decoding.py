"""One row from masks to its end: a window, a forward, a rule, in turn."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tests.reference.caches import Forwards, Whole
from tests.reference.row import Row
from tests.reference.rules import Rule, at_least_one, by_confidence
from tests.reference.windows import Blocks, Places


def decode_row(forwards: Forwards, window: Places, rule: Rule, prompt: list[int], gen_length: int, mask_id: int) -> Row:
    """Decode one prompt until no mask is left."""
    row = Row.start(prompt, gen_length, mask_id)
    while any(row.masked):
        start, stop = window.before(row)
        proposals = forwards.forward(row, start, stop)
        start, stop = window.after(row, proposals)
        candidates = {position: proposals[position][1] for position in range(start, stop) if row.masked[position]}
        for position in at_least_one(rule(candidates), candidates):
            row.write(position, proposals[position][0])
        row.forwards += 1
    return row


BlockRule = Callable[[list[float], int, int], int]


def decode_blocks(
    network: nn.Module, prompt: list[int], gen_length: int, block_length: int, mask_id: int, rule: BlockRule
) -> tuple[list[int], int, list[int]]:
    """Decode one prompt in blocks, without a cache.

    Args:
        network: A model whose logits are not shifted. rule: How many of a block's candidates to commit, at least one
        being committed anyway. It is given their confidences, the largest first, the length of the block, and the
        number of steps that the block has had.

    Returns:
        The canvas, the number of forwards and the step in which each position was committed.
    """
    row = Row.start(prompt, gen_length, mask_id)
    whole = Whole(network, mask_id)
    window = Blocks(block_length)
    steps: dict[int, int] = {}  # start of a block -> steps that it has had
    while any(row.masked):
        start, stop = window.before(row)
        proposals = whole.forward(row, start, stop)
        candidates = {position: proposals[position][1] for position in range(start, stop) if row.masked[position]}
        ranked = by_confidence(candidates)
        count = rule([candidates[position] for position in ranked], stop - start, steps.get(start, 0))
        for position in ranked[: max(1, count)]:
            row.write(position, proposals[position][0])
        steps[start] = steps.get(start, 0) + 1
        row.forwards += 1
    return row.canvas, row.forwards, row.committed_at


def count_above(threshold: float) -> BlockRule:
    """As many as have at least this confidence."""
    return lambda ranked, length, step: sum(confidence >= threshold for confidence in ranked)


def even_quota(steps_per_block: int) -> BlockRule:
    """The block's length shared out evenly among so many steps, the first ones taking one more."""
    return lambda ranked, length, step: length // steps_per_block + (1 if step < length % steps_per_block else 0)
