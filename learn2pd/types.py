"""The values that pass between the roles of the decoding loop. All frozen: a step makes new ones.

Two coordinate systems and no third: *columns* 0..L-1 of the padded batch (prompt left-padded to P, then the canvas), used by plans and
models; *generation positions* 0..G-1 of the canvas, used by everything else. B is rows of the batch, R the rows in one forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelSpec:
    """What the loop must know of a model, and what recordings and policies are tied to."""

    name: str
    mask_id: int
    eot_ids: tuple[int, ...]  # ids that end an answer; the first one fills closed positions
    pad_id: int
    vocab_size: int
    max_length: int  # prompt and canvas together, tokens
    shifted_logits: bool  # True where output i predicts token i+1 (Dream)
    fingerprint: str  # of configuration and weights


@dataclass(frozen=True)
class Window:
    """The positions a policy may commit, per row: start <= position < stop."""

    start: Tensor  # [B] long
    stop: Tensor  # [B] long

    def mask(self, gen_length: int) -> Tensor:
        """[B, G] bool."""
        position = torch.arange(gen_length, device=self.start.device)
        return (position >= self.start[:, None]) & (position < self.stop[:, None])


@dataclass(frozen=True)
class DecodeState:
    """All state of a run. `masked` and not the token id says what is still to decode: a prompt may hold the literal mask id."""

    tokens: Tensor  # [B, L] long
    pad: Tensor  # [B] long, columns of left padding
    masked: Tensor  # [B, G] bool, still to decode
    end: Tensor  # [B] long, positions from here on are closed
    visible: Tensor  # [B] long, positions from here on are out of the sequence (cut), <= G
    committed_at: Tensor  # [B, G] long, step of the commit, -1 where none
    forwards: Tensor  # [B] long, model forwards the row took part in
    auxiliary_forwards: Tensor  # [B] long, forwards of a policy's auxiliary model
    index: Tensor  # [B] long, number of the prompt in the caller's list
    failed: Tensor  # [B] bool, ended because the model gave logits that are not finite
    window: Window
    step: int = 0

    @classmethod
    def start(
        cls, prompts: Sequence[Sequence[int]], index: Sequence[int], gen_length: int, mask_id: int, pad_id: int, device: torch.device
    ) -> DecodeState:
        """Left-padded prompts followed by a canvas of masks; `index` are the prompts' numbers in the caller's list."""
        rows, width = len(prompts), max(map(len, prompts))
        canvas = [mask_id] * gen_length
        with device:
            full, zeros = torch.full((rows,), gen_length), torch.zeros(rows, dtype=torch.long)
            return cls(
                tokens=torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) + canvas for prompt in prompts]),
                pad=torch.tensor([width - len(prompt) for prompt in prompts]),
                masked=torch.ones(rows, gen_length, dtype=torch.bool),
                end=full,
                visible=full,
                committed_at=torch.full((rows, gen_length), -1),
                forwards=zeros,
                auxiliary_forwards=zeros,
                index=torch.tensor(list(index)),
                failed=zeros > 0,
                window=Window(zeros, zeros),
            )

    @property
    def gen_length(self) -> int:
        return self.masked.shape[1]

    @property
    def prompt_width(self) -> int:
        return self.tokens.shape[1] - self.gen_length

    @property
    def canvas(self) -> Tensor:
        """[B, G] long, a view."""
        return self.tokens[:, self.prompt_width :]

    @property
    def open(self) -> Tensor:
        """[B] bool, rows with something left to decode."""
        return self.masked.any(1)

    def commit(self, commit: Commit, proposals: Tensor) -> DecodeState:
        """The state after writing a commit."""
        chosen = proposals if commit.tokens is None else commit.tokens
        canvas = torch.where(commit.mask, chosen, self.canvas)
        return replace(
            self,
            tokens=torch.cat((self.tokens[:, : self.prompt_width], canvas), dim=1),
            masked=self.masked & ~commit.mask,
            committed_at=torch.where(commit.mask, self.step, self.committed_at),
            auxiliary_forwards=self.auxiliary_forwards if commit.auxiliary is None else self.auxiliary_forwards + commit.auxiliary,
        )

    def close(self, end: Tensor, fill_id: int, cut: bool) -> DecodeState:
        """The state after ending rows at `end` [B]: later positions hold `fill_id` and, where `cut`, leave the sequence."""
        closed = torch.arange(self.gen_length, device=end.device) >= end[:, None]
        newly = closed & (torch.arange(self.gen_length, device=end.device) < self.end[:, None])
        canvas = self.canvas.masked_fill(newly, fill_id)
        return replace(
            self,
            tokens=torch.cat((self.tokens[:, : self.prompt_width], canvas), dim=1),
            masked=self.masked & ~closed,
            committed_at=self.committed_at.masked_fill(newly, -1),
            end=end,
            visible=torch.minimum(self.visible, end) if cut else self.visible,
        )


@dataclass(frozen=True)
class ForwardPlan:
    """One model call: which rows and columns to compute, what they may see, where proposals are wanted.

    With a `span`, keys and values of the query are kept and the query attends to the kept columns first..stop-1 of the span; without
    one, nothing is kept and the query attends to itself. Where a row's query is shorter than Q it repeats its last column.
    """

    rows: Tensor  # [R] long, ascending
    query: Tensor  # [R, Q] long, columns
    position: Tensor  # [R, Q] long, position in the row's own sequence (its first real token is 0)
    key_mask: Tensor | None  # [R, K] bool, False on padding and hidden columns; None where there are none
    score: Tensor  # [R, Q] bool, columns whose token is to be proposed
    span: tuple[int, int] | None = None  # columns attended to, K of them; None: the query, K = Q


@dataclass(frozen=True)
class Prediction:
    """What the model proposes. Entries where `valid` is False are zeros.

    `valid` holds the positions that the plans scored; N of them, in row-major order, index `logits` and the noise of `draw`.
    """

    tokens: Tensor  # [B, G] long
    confidence: Tensor  # [B, G] float32 probability of the proposed token, before temperature
    valid: Tensor  # [B, G] bool, scored in this step
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # [B, G] by name: margin, entropy
    logits: Tensor | None = None  # [N, V] float32, mask token at -inf, for policies that need "logits"
    draw: Draw | None = None  # what chose the proposals, with `logits`


@dataclass(frozen=True)
class Commit:
    mask: Tensor  # [B, G] bool
    tokens: Tensor | None = None  # [B, G] long where they are not the proposals
    forced: Tensor | None = None  # [B, G] bool, part of `mask` that the rule itself would not have taken
    log_prob: Tensor | None = None  # [B] float32, for stochastic policies
    auxiliary: Tensor | None = None  # [B] long, forwards of an auxiliary model that the choice took


@dataclass(frozen=True)
class DecodeResult:
    """What came out, in the caller's order; `lengths` counts answer tokens up to, and without, the first end-of-text."""

    tokens: Tensor  # [N, G] long
    lengths: Tensor  # [N] long
    committed_at: Tensor  # [N, G] long, -1 for positions closed by a stop rule
    forwards: Tensor  # [N] long
    auxiliary_forwards: Tensor  # [N] long, of a policy's auxiliary model
    failed: Tensor  # [N] bool, stopped early because the model gave logits that are not finite
    texts: list[str]
    wall_s: float
    seconds: Mapping[str, float]  # of wall_s by part: forward, score (vocabulary projection and proposals), policy

    @property
    def model_s(self) -> float:
        """Seconds inside the model and its vocabulary."""
        return self.seconds.get("forward", 0.0) + self.seconds.get("score", 0.0)


CONFIDENCE = "float32 softmax of unscaled logits, mask token excluded, before temperature"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the default is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0  # smallest set of tokens with at least this probability at the temperature
    top_k: int = 0  # most probable tokens; 0 is all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected 0 or more, and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a probability above 0, at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 (all tokens) or more")


GREEDY = Sampling()


@dataclass(frozen=True)
class Draw:
    """One draw of N tokens. Applied to other logits it uses the same noise, so that equal distributions always agree (Gumbel coupling)."""

    sampling: Sampling
    noise: Tensor | None = None  # [N, V] float64 Gumbel; None is greedy

    def __call__(self, logits: Tensor) -> Tensor:
        """Tokens [N] long of logits [N, V]."""
        if self.noise is None:
            return logits.argmax(-1)
        scaled = restrict(logits.double() / self.sampling.temperature, self.sampling)
        return (scaled + self.noise[:, : logits.shape[-1]]).argmax(-1)


def restrict(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits [N, V] with -inf outside the `top_k` and `top_p` sets; the most probable token always stays."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        dropped = probability.cumsum(-1) - probability >= sampling.top_p  # what comes before a token already suffices
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits
