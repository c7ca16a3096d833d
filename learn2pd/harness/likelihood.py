"""How likely a masked diffusion model finds an answer. No policy has a part in it.

The likelihood itself cannot be computed. LLaDA (arXiv 2502.09992, equation 6) scores an answer of L tokens by a bound:

    log p(answer | prompt) >= mean over l in 1..L, and over the ways to mask l of the tokens, of
                              L / l * (sum over the masked tokens of log p(token | the tokens that are not masked)).

An answer with few enough ways is scored exactly, by all of them. Otherwise the mean is estimated from samples, whose l
are spread evenly over 1..L from a random start. A model whose blocks are causal writes block after block, so that its
bound is the sum of the bounds of the answer's blocks, each given the blocks before it, and short blocks are exact.

Deviations from the authors' `get_log_likelihood`: short answers are exact; the random numbers of an answer follow from
its tokens and a seed, so that its score depends on no other answer, order or process; answers of different lengths
share a batch; the evenly spread l are rounded down, since rounding to even numbers prefers some of them.

In the shapes, S is the number of maskings of an answer and L the number of its tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from learn2pd.models.adapter import ModelAdapter
from learn2pd.tensors import widened
from learn2pd.types import ForwardPlan

Pair = tuple[Sequence[int], Sequence[int]]  # the token ids of a prompt and of its answer; neither is empty
T = TypeVar("T")
LOGITS_AT_A_TIME = 2**23  # values: 66 positions of LLaDA's vocabulary, 32 MiB in float32


@dataclass(frozen=True)
class _Masked:
    """A sequence in which some tokens are masked."""

    tokens: list[int]  # without the masks
    places: list[int]  # of the masks
    owner: int  # number of the pair that it belongs to
    weight: float = 1.0


@torch.inference_mode()
def log_likelihoods(model: ModelAdapter, pairs: Sequence[Pair], *, samples: int, rows: int, seed: int) -> list[float]:
    """Score answers.

    Args:
        model: The model.
        pairs: The prompts and their answers.
        samples: The number of samples for each answer, or for each block of it. An answer or block that has no more
            maskings than this is scored exactly.
        rows: The number of sequences in one forward.
        seed: The seed of the samples.

    Returns:
        The scores, in nats.
    """
    jobs: list[_Masked] = []
    for number, (prompt, answer) in enumerate(pairs):
        for before, block in blocks_of(prompt, answer, model.spec.causal_block):
            hidden, weights = maskings(len(block), samples, _generator(seed, before, block))
            jobs += [
                _Masked(before + block, [len(before) + place for place in row.nonzero()[:, 0].tolist()], number, weight)
                for row, weight in zip(hidden, weights.tolist(), strict=True)
            ]
    totals = [0.0] * len(pairs)
    jobs.sort(key=lambda job: -len(job.tokens))
    for batch in _batches(jobs, rows):
        targets = torch.tensor([job.tokens[place] for job in batch for place in job.places])
        parts = []
        for logits, at in _logits(model, batch):
            parts.append(logits.log_softmax(-1).gather(1, targets[at, None].to(logits.device))[:, 0].double().cpu())
        scores = torch.cat(parts).split([len(job.places) for job in batch])
        for job, values in zip(batch, scores, strict=True):
            totals[job.owner] += job.weight * float(values.sum())
    return totals


@dataclass
class _Forced:
    """An answer that is being written one token a step, as long as the model proposes its tokens."""

    number: int
    blocks: list[tuple[list[int], list[int]]]
    open: list[int] = field(default_factory=list)  # places in the present block that are still masked

    def __post_init__(self) -> None:
        self.open = list(range(len(self.blocks[0][1])))

    def masked(self) -> _Masked:
        before, block = self.blocks[0]
        return _Masked(before + block, [len(before) + place for place in self.open], self.number)

    def takes(self, confidence: Tensor, proposals: Tensor) -> bool:
        """Commit the surest proposal, and say whether it is the answer's token."""
        surest = int(confidence.argmax())
        right = int(proposals[surest]) == self.blocks[0][1][self.open.pop(surest)]
        if right and not self.open:
            self.blocks = self.blocks[1:]
            self.open = list(range(len(self.blocks[0][1]))) if self.blocks else []
        return right


@torch.inference_mode()
def are_greedy(model: ModelAdapter, pairs: Sequence[Pair], *, rows: int) -> list[bool]:
    """Say which answers the model writes by itself, with one token a step and the most confident one first.

    Args:
        model: The model.
        pairs: The prompts and their answers. The canvas of an answer has the length of the answer.
        rows: The number of sequences in one forward.

    Returns:
        A verdict for each pair.
    """
    verdicts = [False] * len(pairs)
    for batch in _batches(list(enumerate(pairs)), rows):
        left = [_Forced(number, list(blocks_of(*pair, model.spec.causal_block))) for number, pair in batch]
        while left:
            jobs = [answer.masked() for answer in left]
            surest = []
            for logits, _ in _logits(model, jobs):
                logits[:, model.spec.mask_id] = -torch.inf
                surest.append(torch.stack(logits.softmax(-1).max(-1)).double().cpu())  # confidences and tokens
            shares = torch.cat(surest, dim=1).split([len(job.places) for job in jobs], dim=1)
            left = [
                answer
                for answer, (confidence, token) in zip(left, shares, strict=True)
                if answer.takes(confidence, token)
            ]
            for answer in left:
                verdicts[answer.number] = not answer.blocks
            left = [answer for answer in left if answer.blocks]
    return verdicts


def blocks_of(
    prompt: Sequence[int], answer: Sequence[int], causal_block: int | None
) -> list[tuple[list[int], list[int]]]:
    """Split an answer into the parts that the model writes one after the other.

    Args:
        prompt: The token ids of the prompt.
        answer: The token ids of the answer.
        causal_block: The length of the model's blocks, which are counted from the first token of the prompt; None where
            every token sees every other token, so that the answer is one part.

    Returns:
        The tokens before each part, and the part.
    """
    whole = [*prompt, *answer]
    start = len(prompt)
    if causal_block is None:
        return [(whole[:start], whole[start:])]
    cuts = [start, *range((start // causal_block + 1) * causal_block, len(whole), causal_block), len(whole)]
    return [(whole[:first], whole[first:last]) for first, last in itertools.pairwise(cuts)]


def maskings(length: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the maskings by which an answer is scored.

    Args:
        length: L, at least 1.
        samples: The number of samples. Where the answer has no more maskings than this, all of them are returned.
        generator: The source of the samples.

    Returns:
        [S, L] bool, the tokens that each masking hides, and [S] float64, the weight of its sum of log-probabilities.
    """
    if length < 32 and 2**length - 1 <= samples:
        number = torch.arange(1, 2**length)
        hidden = (number[:, None] >> torch.arange(length)) % 2 == 1
        count = hidden.sum(1)
        ways = torch.tensor([math.comb(length, hides) for hides in count.tolist()], dtype=torch.float64)
        return hidden, 1 / (count * ways)
    start = int(torch.randint(length, (1,), generator=generator))
    count = (start + torch.arange(samples) * length // samples) % length + 1
    rank = torch.rand(samples, length, generator=generator).argsort(-1).argsort(-1)
    return rank < count[:, None], length / count.double() / samples


def _generator(seed: int, before: Sequence[int], block: Sequence[int]) -> torch.Generator:
    digest = hashlib.sha256(repr((seed, list(before), list(block))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _batches(jobs: Sequence[T], rows: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(jobs), rows):
        yield jobs[first : first + rows]


def _logits(model: ModelAdapter, batch: Sequence[_Masked]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits [N, V] of the masked tokens of a batch, in at least float32, and their places [N] in the list.

    The list is that of all masks of the batch, row by row. A few of them are projected to the vocabulary at a time.
    """
    width = max(len(job.tokens) for job in batch)
    tokens = torch.full((len(batch), width), model.spec.pad_id)
    seen = torch.zeros(len(batch), width, dtype=torch.bool)
    row, column = [], []
    for number, job in enumerate(batch):
        left = width - len(job.tokens)  # padding stands on the left, as in the decoding loop
        tokens[number, left:] = torch.tensor(job.tokens)
        seen[number, left:] = True
        row += [number] * len(job.places)
        column += [left + place for place in job.places]
    tokens[row, column] = model.spec.mask_id
    tokens, seen = tokens.to(model.device), seen.to(model.device)
    query = torch.arange(width, device=model.device).expand(len(batch), -1)
    plan = ForwardPlan(
        rows=torch.arange(len(batch), device=model.device),
        query=query,
        position=(seen.cumsum(1) - 1).clamp_min(0),
        key_mask=seen,
        score=torch.zeros_like(seen),
        columns=seen.sum(1),
    )
    hidden = model.forward(tokens, plan, None)
    place = torch.tensor(column, device=model.device) - model.spec.shift
    masked = hidden[torch.tensor(row, device=model.device), place]
    size = max(1, LOGITS_AT_A_TIME // model.spec.vocab_size)
    for first in range(0, len(masked), size):
        part = masked[first : first + size]
        yield widened(model.score(part)), torch.arange(first, first + len(part))
