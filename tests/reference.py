"""Decoding as one would write it down: one row, all logits, float64, plain loops. Slow, obvious, and independent of the package's loop."""

from __future__ import annotations

import torch


def proposals(network, ids: list[int], mask_id: int) -> list[tuple[int, float]]:
    """Token and its probability for every position; the mask token is never proposed."""
    with torch.inference_mode():
        logits = network(torch.tensor([ids])).logits[0].double()
        logits[:, mask_id] = -torch.inf
        best = logits.softmax(-1).max(-1)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def decode_reference(network, prompt: list[int], gen_length: int, block_length: int, mask_id: int, rule) -> tuple[list[int], int, list[int]]:
    """Canvas, forwards and step of each commit. `rule(ranked, masks, step)` says how many of the block's `ranked` candidates to commit."""
    canvas, masked, committed_at, forwards = [mask_id] * gen_length, [True] * gen_length, [-1] * gen_length, 0
    for start in range(0, gen_length, block_length):
        block = range(start, min(start + block_length, gen_length))
        masks, step = len(block), 0
        while any(masked[position] for position in block):
            found = proposals(network, prompt + canvas, mask_id)[len(prompt) :]
            ranked = sorted((position for position in block if masked[position]), key=lambda position: -found[position][1])
            count = max(1, rule([found[position][1] for position in ranked], masks, step))
            for position in ranked[:count]:
                canvas[position], masked[position], committed_at[position] = found[position][0], False, forwards
            forwards, step = forwards + 1, step + 1
    return canvas, forwards, committed_at


def threshold_rule(threshold: float):
    return lambda ranked, masks, step: sum(confidence >= threshold for confidence in ranked)


def fixed_rule(steps_per_block: int):
    return lambda ranked, masks, step: masks // steps_per_block + (1 if step < masks % steps_per_block else 0)
