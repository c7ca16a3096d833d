"""`generate` turns prompts into answers with an autoregressive method, batch by batch.

All three methods are one loop. A round lets the draft write and the target test, and settles what stands. In plain
decoding there is nothing to test, so that the target's own token is settled. PEARL differs from speculative decoding in
what the target tests in a round: what was *pending*, which is what the draft wrote in the round before, and the first
token of this round.

In the shapes, B is the number of rows of the batch, R of rows that are still open, S of positions of prompt and answer,
G of positions of the canvas, T of positions that a round tests, V of tokens of the vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.autoregressive.drawing import NO_DRAFT, Rule, rule_of, uniforms
from learn2pd.autoregressive.methods import AutoregressiveMethod
from learn2pd.autoregressive.model import Runner
from learn2pd.decoding import answer_lengths
from learn2pd.errors import UserError
from learn2pd.models.prompts import prompt_list
from learn2pd.tensors import is_among
from learn2pd.types import GREEDY, DecodeResult, Sampling, row_seeds


@dataclass(frozen=True, repr=False)
class Generation(DecodeResult):
    """The answers of `generate`. `forwards` counts those of the target, `auxiliary_forwards` those of the draft.

    Attributes:
        accepted: [N] long, the tokens of the draft that stand in the answer.
        draft_runs: [N] long, how often the draft began to write anew: in every round of speculative decoding, and in
            PEARL at the start and after every refusal.
    """

    accepted: Tensor
    draft_runs: Tensor


@checked(but=("prompts",))
def generate(
    method: AutoregressiveMethod,
    prompts: Any,
    *,
    gen_length: int = 256,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stops: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Generation:
    """Decode prompts with an autoregressive method.

    The prompts are sorted by length and decoded in batches. In float32 every prompt gives the same answer as if it were
    decoded alone, and as the target gives alone.

    Args:
        method: The method, such as `PearlMethod(target, draft)`.
        prompts: As for `learn2pd.decode`.
        gen_length: The most tokens of an answer.
        batch_size: The number of prompts that are decoded together.
        sampling: The rule by which tokens are drawn.
        seed: The number from which the seeds of the prompts are made.
        stops: False goes on after the end-of-text, until the answers are full.
        progress: A function that receives the number of prompts of each finished batch.

    Returns:
        Answers and counts in the order of the prompts.

    Raises:
        UserError: A prompt is empty, or prompt and answer are longer than a model allows.
    """
    if gen_length < 1 or batch_size < 1:
        raise UserError(f"gen_length={gen_length}, batch_size={batch_size}: both must be at least 1")
    ids = [_encode(method, prompt, number, gen_length) for number, prompt in enumerate(prompt_list(prompts))]
    started = time.perf_counter()
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    batches = []
    with ThreadPoolExecutor(1) as beside:
        for first in range(0, max(len(order), 1), batch_size):
            numbers = order[first : first + batch_size]
            seeds = row_seeds(seed, numbers)
            batch = _Batch(method, [ids[number] for number in numbers], gen_length, sampling, seeds, beside)
            while batch.open.any():
                batch.round(stops)
            batches.append(batch)
            if progress:
                progress(len(numbers))
    return _collect(method, batches, order, time.perf_counter() - started)


def _encode(method: AutoregressiveMethod, prompt: Any, number: int, gen_length: int) -> list[int]:
    """Encode a prompt, and refuse one that does not fit the models."""
    try:
        ids = method.target.encode(prompt)
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from error
    for model in (method.target, method.draft):
        if model is not None and len(ids) + gen_length > model.max_length:
            raise UserError(
                f"prompt {number}: {len(ids)} tokens and gen_length={gen_length} make {len(ids) + gen_length}, "
                f"{model.name} takes at most {model.max_length}: shorten the prompt or lower gen_length"
            )
    return ids


class _Batch:
    """The run of one batch. Every tensor has an entry for each of the B rows; `round` changes them.

    Attributes:
        tokens: [B, S] long, prompts and answers from the left, with room for drafts behind the end.
        settled: [B] long, the tokens of a row that stand.
        pending: [B] long, the tokens behind them that the draft wrote and no forward has tested.
        anew: [B] bool, True where the draft begins to write anew in this round.
        proposed: [B, draft length, V] float64, the distributions of the last draft; None at temperature 0.
    """

    def __init__(
        self,
        method: AutoregressiveMethod,
        prompts: Sequence[Sequence[int]],
        gen_length: int,
        sampling: Sampling,
        seeds: list[int],
        beside: ThreadPoolExecutor,
    ) -> None:
        self.method = method
        self.rule = rule_of(sampling)
        self.beside = beside
        self.gen_length = gen_length
        rows = len(prompts)
        ahead = 2 * method.draft_length  # a draft and what is pending before it
        device = method.target.device
        slots = max(map(len, prompts), default=0) + gen_length + ahead
        with device:
            self.prompt = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long)
            self.tokens = torch.zeros(rows, slots, dtype=torch.long)
            for number, prompt in enumerate(prompts):
                self.tokens[number, : len(prompt)] = torch.tensor(prompt)
            zeros = torch.zeros_like(self.prompt)
            self.committed_at = torch.full((rows, gen_length), -1)
        drawn = uniforms(seeds, gen_length + ahead) if sampling.temperature else torch.zeros(rows, 1, 3)
        self.uniform = drawn.to(device)
        self.proposed: Tensor | None = None
        self.limit = self.prompt + gen_length
        self.settled = self.prompt.clone()
        self.pending = zeros.clone()
        self.open = zeros == 0
        self.anew = zeros < method.draft_length
        self.failed = zeros > 0
        self.forwards, self.drafts, self.columns, self.accepted, self.draft_runs = (zeros.clone() for _ in range(5))
        self.target = Runner(method.target, rows, slots)
        self.computed = zeros.clone()  # positions in the target's cache
        self.drafter = None if method.draft is None else Runner(method.draft, rows, slots)
        self.drafted = zeros.clone()  # positions in the draft's cache

    @torch.inference_mode()
    def round(self, stops: bool) -> None:
        """Let the draft write, let the target test, and settle what stands, in every open row.

        Args:
            stops: False goes on after the end-of-text.
        """
        rows = self.open.nonzero()[:, 0]
        known = self.settled[rows] + self.pending[rows]  # [R], the draft writes behind them
        length = self.method.draft_length
        self.draft_runs[rows] += self.anew[rows].long()
        if self.method.overlaps:
            writing = self.beside.submit(_write, *self._drafting(rows, known))
            logits = self._score(rows, known, int(self.pending[rows].max()) + 1)
            proposed = self._keep_draft(rows, known, *writing.result())
            tests = self.pending[rows] + 1
        else:
            proposed = self._keep_draft(rows, known, *_write(*self._drafting(rows, known))) if length else None
            logits = self._score(rows, known + length, length + 1)
            tests = torch.full_like(known, length + 1)
        tested_until = known + (1 if self.method.overlaps else length + 1)
        self._settle(rows, logits, proposed, tested_until, tests, stops)

    def _score(self, rows: Tensor, stop: Tensor, wide: int) -> Tensor:
        """Run the target on everything before `stop`, and return the logits of the last `wide` columns."""
        first = self.computed[rows]
        self.forwards[rows] += 1
        self.columns[rows] += stop - first
        self.computed[rows] = stop
        return self.target.predict(rows, self.tokens[rows], first, stop, wide)

    def _drafting(self, rows: Tensor, known: Tensor) -> tuple[Any, ...]:
        """Return the arguments of `_write`, which share nothing with the batch but the draft's cache."""
        drafter = self.drafter
        assert drafter is not None
        at = known[:, None] + torch.arange(self.method.draft_length, device=known.device)
        values = (rows, self.tokens[rows], self.drafted[rows], known, self._uniform(rows, at))
        return drafter, self.rule, self.method.draft_length, *(value.to(drafter.model.device) for value in values)

    def _keep_draft(self, rows: Tensor, known: Tensor, written: Tensor, distributions: Tensor | None) -> Tensor | None:
        """Write a draft into the rows, and return the distributions of the tokens that this round tests."""
        length = self.method.draft_length
        at = known[:, None] + torch.arange(length, device=known.device)
        self.tokens[rows[:, None], at] = written.to(known.device)
        self.drafts[rows] += length
        self.drafted[rows] = known + length - 1
        if distributions is None:
            return None
        distributions = distributions.to(known.device)
        if not self.method.overlaps:
            return torch.cat((distributions, torch.zeros_like(distributions[:, :1])), dim=1)
        if self.proposed is None:
            self.proposed = distributions.new_zeros(len(self.tokens), *distributions.shape[1:])
        before = self.proposed[rows, 1:]
        self.proposed[rows] = distributions
        return torch.cat((before, distributions[:, :1]), dim=1)

    def _uniform(self, rows: Tensor, position: Tensor) -> Tensor:
        """Return the uniform numbers of positions of the sequence, [R] or [R, T]."""
        prompt = self.prompt[rows].view(-1, *(1,) * (position.ndim - 1))
        at = (position - prompt).clamp(0, self.uniform.shape[1] - 1)
        return self.uniform[rows.view(prompt.shape), at]

    def _settle(
        self, rows: Tensor, logits: Tensor, proposed: Tensor | None, stop: Tensor, tests: Tensor, stops: bool
    ) -> None:
        """Settle what the target lets stand.

        Args:
            rows: [R] long.
            logits: [R, T, V] float, the target's, for the positions before `stop`.
            proposed: [R, T', V] float64, the distributions of the tested tokens, the last T of them; None at
                temperature 0.
            stop: [R] long, the position behind the last tested one.
            tests: [R] long, the tested positions of each row, the last ones of T.
            stops: False goes on after the end-of-text.
        """
        wide = logits.shape[1]
        at = stop[:, None] - wide + torch.arange(wide, device=stop.device)
        at = at.clamp_min(0)  # [R, T], which only moves columns before the first test
        drafted = self.tokens[rows].gather(1, at)
        if not self.method.overlaps:
            drafted[:, -1] = NO_DRAFT
        proposed = None if proposed is None else proposed[:, -wide:]
        stands, instead = self.rule.verify(logits, drafted, proposed, self._uniform(rows, at))
        spare = wide - tests  # the columns before the first test
        stands = stands | (torch.arange(wide, device=stop.device) < spare[:, None])
        stood = stands.long().cumprod(1).sum(1) - spare  # [R], the tokens of the draft that stand
        whole = stood == tests
        before = self.settled[rows]
        place = torch.where(whole, 0, stood + spare).clamp_max(wide - 1)[:, None]
        corrected = torch.where(whole, self.tokens[rows, before + stood], instead.gather(1, place)[:, 0])
        self.tokens[rows, before + stood] = corrected
        after = before + stood + (~whole).long()
        if self.method.overlaps:
            self.anew[rows] = ~whole
        self.pending[rows] = torch.where(whole, self.method.draft_length - 1, 0)
        self.computed[rows] = torch.minimum(self.computed[rows], after - 1)
        self.drafted[rows] = torch.minimum(self.drafted[rows], after + self.pending[rows] - 1)
        self.failed[rows] = logits.isnan().flatten(1).any(1)
        self._close(rows, before, after, stood, wide, stops)

    def _close(self, rows: Tensor, before: Tensor, after: Tensor, stood: Tensor, wide: int, stops: bool) -> None:
        """Note the tokens from `before` to `after`, and close the rows that have ended in them."""
        at = before[:, None] + torch.arange(wide, device=before.device)
        ends = is_among(self.tokens[rows].gather(1, at), self.method.target.eot_ids) & (at < after[:, None])
        ended = ends.any(1) if stops else torch.zeros_like(ends[:, 0])
        end = torch.where(ended, before + ends.int().argmax(1) + 1, after)
        end = torch.minimum(end, self.limit[rows])
        new = (at < end[:, None]).nonzero()
        place = at[new[:, 0], new[:, 1]] - self.prompt[rows[new[:, 0]]]
        self.committed_at[rows[new[:, 0]], place] = self.forwards[rows[new[:, 0]]] - 1
        self.accepted[rows] += torch.minimum(stood, end - before)
        self.settled[rows] = end
        self.open[rows] = ~(ended | (end == self.limit[rows]) | self.failed[rows])

    def canvas(self) -> Tensor:
        """Return the answers, [B, G] long, filled up with end-of-text."""
        position = torch.arange(self.gen_length, device=self.prompt.device)
        tokens = self.tokens.gather(1, self.prompt[:, None] + position)
        return torch.where(position < (self.settled - self.prompt)[:, None], tokens, self.method.target.eot_ids[0])


def _write(
    drafter: Runner,
    rule: Rule,
    length: int,
    rows: Tensor,
    tokens: Tensor,
    first: Tensor,
    known: Tensor,
    uniform: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Let the draft write. It may do so in a thread of its own, while the target runs.

    Args:
        drafter: The draft with its cache.
        rule: The rule that draws.
        length: The tokens to write.
        rows: [R] long, the numbers of the rows.
        tokens: [R, S] long, a copy of the rows, in which the draft writes.
        first: [R] long, the first position that the draft has not computed.
        known: [R] long, the position of the first token to write.
        uniform: [R, length, 3] float64, the uniform numbers of the positions.

    Returns:
        The tokens [R, length] and their distributions [R, length, V], None at temperature 0.
    """
    written = []
    distributions = []
    with torch.inference_mode(), _own_stream(drafter.model.device):
        for number in range(length):
            stop = known + number
            logits = drafter.predict(rows, tokens, first, stop, 1)[:, 0]
            token, distribution = rule.draw(logits, uniform[:, number])
            tokens.scatter_(1, stop[:, None], token[:, None])
            written.append(token)
            distributions += [] if distribution is None else [distribution]
            first = stop
        return torch.stack(written, 1), torch.stack(distributions, 1) if distributions else None


@contextlib.contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own on a GPU: after what the device was asked before, and beside what it is asked now."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _collect(
    method: AutoregressiveMethod, batches: Sequence[_Batch], order: Sequence[int], wall_s: float
) -> Generation:
    """Put all batches together, in the order of the prompts."""
    back = torch.tensor(order, dtype=torch.long).argsort()

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches]).cpu()[back]

    tokens = torch.cat([batch.canvas() for batch in batches]).cpu()[back]
    lengths = answer_lengths(tokens, method.target.eot_ids)
    zeros = torch.zeros_like(lengths)
    drafters = [batch.drafter for batch in batches if batch.drafter is not None]
    return Generation(
        tokens=tokens,
        lengths=lengths,
        committed_at=joined("committed_at"),
        forwards=joined("forwards"),
        columns=joined("columns"),
        auxiliary_forwards=joined("drafts"),
        revoked=zeros,
        edited=zeros,
        flip_flops=zeros,
        failed=joined("failed"),
        texts=[method.target.text(row[:length]) for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)],
        wall_s=wall_s,
        seconds={
            "forward": sum(batch.target.seconds for batch in batches),
            "draft": sum(drafter.seconds for drafter in drafters),
        },
        accepted=joined("accepted"),
        draft_runs=joined("draft_runs"),
    )
