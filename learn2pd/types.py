"""The values that pass between the roles of the decoding loop. All frozen: a step makes new ones.

Two coordinate systems and no third: *columns* 0..L-1 of the padded batch (prompt left-padded to P, then the canvas), used by plans and
models; *generation positions* 0..G-1 of the canvas, used by everything else. B is rows of the batch, R the rows in one forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

CONFIDENCE = "float32 softmax of unscaled logits, mask token excluded, before temperature"
NOT_PROPOSED = -1  # in `DecodeState.previous`
UNRESTRICTED = -1  # fills `DecodeState.allowed`


@dataclass(frozen=True)
class RowMemory:
    """What a component remembers of a run: every tensor has one entry a row, every other value is the same for all rows."""

    def rows(self, index: Tensor) -> Self:
        """The memory of some rows. `index` [R] long or [B] bool."""
        return replace(self, **{name: _rows(value, index) for name, value in vars(self).items()})

    @classmethod
    def stack(cls, memories: Sequence[Self]) -> Self:
        """The memory of the rows of several runs, one after another."""
        return replace(
            memories[0],
            **{name: _stacked([getattr(memory, name) for memory in memories]) for name in vars(memories[0])},
        )


def _rows(value: Any, index: Tensor) -> Any:
    if isinstance(value, RowMemory):
        return value.rows(index)
    return value[index] if isinstance(value, Tensor) else value


def _stacked(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, RowMemory):
        return type(first).stack(values)
    return torch.cat(list(values)) if isinstance(first, Tensor) else first


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
    causal_block: int | None = (
        None  # tokens of a block that sees itself and what lies before it; None: every token sees every other
    )
    special_tokens: tuple[str, ...] = field(default=(), compare=False, repr=False)  # the tokenizer's control tokens
    vocabulary: Mapping[str, int] = field(
        default_factory=dict, compare=False, repr=False
    )  # token -> id; empty where there is no tokenizer


@dataclass(frozen=True)
class Window(RowMemory):
    """The positions a policy may commit, per row: start <= position < stop."""

    start: Tensor  # [B] long
    stop: Tensor  # [B] long

    def mask(self, gen_length: int) -> Tensor:
        """[B, G] bool."""
        position = torch.arange(gen_length, device=self.start.device)
        return (position >= self.start[:, None]) & (position < self.stop[:, None])


@dataclass(frozen=True)
class DecodeState(RowMemory):
    """All state of a run. `masked` and not the token id says what is still to decode: a prompt may hold the literal mask id."""

    tokens: Tensor  # [B, L] long
    pad: Tensor  # [B] long, columns of left padding
    masked: Tensor  # [B, G] bool, still to decode
    given: Tensor  # [B, G] bool, tokens that the caller fixed; no policy touches them
    allowed: (
        Tensor | None
    )  # [B, G, A] long, ids a position may hold, filled with `UNRESTRICTED`; all of them so: any id. None: any everywhere
    end: Tensor  # [B] long, positions from here on are closed
    visible: Tensor  # [B] long, positions from here on are out of the sequence (cut), <= G
    committed_at: Tensor  # [B, G] long, step of the last commit, -1 where none
    previous: Tensor  # [B, G] long, what the last step proposed in its window, `NOT_PROPOSED` elsewhere
    step: Tensor  # [B] long, steps the row has taken
    forwards: Tensor  # [B] long, model forwards the row took part in
    columns: Tensor  # [B] long, columns those forwards computed, shadow columns included
    auxiliary_forwards: Tensor  # [B] long, forwards of a policy's auxiliary model
    revoked: Tensor  # [B] long, commits that were taken back
    edited: Tensor  # [B] long, committed tokens that were overwritten
    index: Tensor  # [B] long, number of the prompt in the caller's list
    seed: Tensor  # [B] long, of the row's own random draws
    failed: Tensor  # [B] bool, ended because the model gave logits that are not finite
    window: Window

    @classmethod
    def start(
        cls,
        prompts: Sequence[Sequence[int]],
        gen_length: int,
        spec: ModelSpec,
        *,
        index: Sequence[int] | None = None,
        seed: Sequence[int] | None = None,
        given: Tensor | None = None,
        allowed: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> DecodeState:
        """Left-padded prompts followed by a canvas of masks.

        Args:
            prompts: token ids.
            gen_length: G, tokens of the canvas.
            spec: of the model.
            index: the prompts' numbers in the caller's list; in order where None.
            seed: of each row's random draws; the row's index where None.
            given: [B, G] long, tokens that are fixed, -1 where the model decodes; None fixes nothing.
            allowed: as the field.
        """
        count, width = len(prompts), max(map(len, prompts))
        device = torch.device(device)
        numbers = list(range(count)) if index is None else list(index)
        rows = [[spec.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        fixed = torch.full((count, gen_length), -1, device=device) if given is None else given.to(device)
        with device:
            tokens = torch.cat(
                (torch.tensor(rows, dtype=torch.long), torch.where(fixed < 0, spec.mask_id, fixed)), dim=1
            )
            pad = torch.tensor([width - len(prompt) for prompt in prompts])
            state = cls._at(
                tokens, pad, fixed < 0, torch.tensor(numbers), torch.tensor(list(numbers if seed is None else seed))
            )
        return replace(state, allowed=None if allowed is None else allowed.to(device))

    @classmethod
    def of_block(cls, tokens: Tensor, masked: Tensor) -> DecodeState:
        """A block as a canvas without a prompt, for a policy that is asked outside a run.

        Args:
            tokens: [B, W] long.
            masked: [B, W] bool, positions that are still to decode.

        Returns:
            A state whose window is the whole block.
        """
        number = torch.arange(len(tokens), device=tokens.device)
        state = cls._at(tokens, torch.zeros_like(number), masked, number, number)
        return replace(state, given=torch.zeros_like(masked), window=Window(torch.zeros_like(number), state.end))

    @classmethod
    def _at(cls, tokens: Tensor, pad: Tensor, masked: Tensor, index: Tensor, seed: Tensor) -> DecodeState:
        """A state before its first step."""
        zeros = torch.zeros_like(index)
        full = zeros + masked.shape[1]
        nowhere = torch.full_like(masked, -1, dtype=torch.long)
        return cls(
            tokens=tokens, pad=pad, masked=masked, given=~masked, allowed=None, end=full, visible=full, committed_at=nowhere, previous=nowhere,
            step=zeros, forwards=zeros, columns=zeros, auxiliary_forwards=zeros, revoked=zeros, edited=zeros, index=index, seed=seed,
            failed=zeros > 0, window=Window(zeros, zeros),
        )  # fmt: skip

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

    @property
    def leftmost_mask(self) -> Tensor:
        """[B] long, 0 for finished rows, which no plan contains."""
        return self.masked.int().argmax(1)

    @property
    def decided(self) -> Tensor:
        """[B, G] bool: committed or given, and not closed."""
        return ~self.masked & (torch.arange(self.gen_length, device=self.end.device) < self.end[:, None])

    def commit(self, commit: Commit, proposals: Tensor, mask_id: int) -> DecodeState:
        """The state after writing a commit: what is taken back becomes a mask again."""
        written = proposals if commit.tokens is None else commit.tokens
        canvas = torch.where(commit.mask, written, self.canvas)
        masked, committed_at, revoked = (
            self.masked & ~commit.mask,
            torch.where(commit.mask, self.step[:, None], self.committed_at),
            self.revoked,
        )
        if commit.revoke is not None:
            canvas = canvas.masked_fill(commit.revoke, mask_id)
            masked = masked | commit.revoke
            committed_at = committed_at.masked_fill(commit.revoke, -1)
            revoked = revoked + commit.revoke.sum(1)
        return replace(
            self,
            tokens=torch.cat((self.tokens[:, : self.prompt_width], canvas), dim=1),
            masked=masked,
            committed_at=committed_at,
            revoked=revoked,
            edited=self.edited + (commit.mask & ~self.masked).sum(1),
            auxiliary_forwards=self.auxiliary_forwards
            if commit.auxiliary is None
            else self.auxiliary_forwards + commit.auxiliary,
        )

    def close(self, end: Tensor, fill_id: int, cut: bool) -> DecodeState:
        """The state after ending rows at `end` [B]: later positions hold `fill_id` and, where `cut`, leave the sequence.

        No row ends before a token that the caller gave.
        """
        position = torch.arange(self.gen_length, device=end.device)
        end = torch.maximum(end, torch.where(self.given, position + 1, 0).amax(1))
        closed = position >= end[:, None]
        newly = closed & (position < self.end[:, None])
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
    key_mask: Tensor | None  # [R, K] or [R, Q, K] bool, False on columns that are not seen; None where all are
    score: Tensor  # [R, Q] bool, columns whose token is to be proposed
    columns: Tensor  # [R] long, how many different columns of each row are computed
    span: tuple[int, int] | None = None  # columns attended to, K of them; None: the query, K = Q
    shadow: Tensor | None = None  # [R, S] long, columns whose token is asked for as if it alone were not known


@dataclass(frozen=True)
class Prediction:
    """What the model proposes. Entries where `valid` is False are zeros.

    `valid` holds the positions that the plans scored; N of them, in row-major order, index `logits` and the noise of `draw`.
    """

    tokens: Tensor  # [B, G] long
    confidence: Tensor  # [B, G] float32 probability of the proposed token, before temperature
    valid: Tensor  # [B, G] bool, scored in this step
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # [B, G] by name: margin, entropy, leave_one_out
    logits: Tensor | None = None  # [N, V] float32, mask token at -inf, for policies that need "logits"
    draw: Draw | None = None  # what chose the proposals, with `logits`

    def extra(self, name: str) -> Tensor:
        """[B, G] an extra.

        Raises:
            ValueError: nobody asked for it; a component asks by its attribute `needs`.
        """
        if name not in self.extras:
            raise ValueError(
                f"the prediction has no {name!r}: the component that reads it must name it in its attribute 'needs'"
            )
        return self.extras[name]


@dataclass(frozen=True)
class Commit:
    """What a policy does in a step. Overwriting a committed token is a commit at its position with another token."""

    mask: Tensor  # [B, G] bool
    tokens: Tensor | None = None  # [B, G] long where they are not the proposals
    revoke: Tensor | None = None  # [B, G] bool, committed positions of the window that become masks again
    forced: Tensor | None = None  # [B, G] bool, part of `mask` that the rule itself would not have taken
    auxiliary: Tensor | None = None  # [B] long, forwards of an auxiliary model that the choice took
    memory: Any = None  # of the policy's next step; None keeps the last one


@dataclass(frozen=True)
class Step:
    """What happened in one step: the event that observers of a run get."""

    state: DecodeState  # before the commit
    prediction: Prediction
    commit: Commit  # as it was written
    after: DecodeState

    @property
    def tokens(self) -> Tensor:
        """[B, G] long, what was written where `commit.mask` is True."""
        return self.prediction.tokens if self.commit.tokens is None else self.commit.tokens

    @property
    def log_probability(self) -> Tensor:
        """[B, G] float32, of the proposals that were committed; 0 where the token is not the proposal."""
        proposed = self.commit.mask & (self.tokens == self.prediction.tokens) & self.prediction.valid
        return self.prediction.confidence.log().masked_fill(~proposed, 0.0)


@dataclass(frozen=True)
class DecodeResult:
    """What came out, in the caller's order; `lengths` counts answer tokens up to, and without, the first end-of-text."""

    tokens: Tensor  # [N, G] long
    lengths: Tensor  # [N] long
    committed_at: Tensor  # [N, G] long, -1 for positions closed by a stop rule
    forwards: Tensor  # [N] long
    columns: Tensor  # [N] long, columns that those forwards computed
    auxiliary_forwards: Tensor  # [N] long, of a policy's auxiliary model
    revoked: Tensor  # [N] long, commits that were taken back
    edited: Tensor  # [N] long, committed tokens that were overwritten
    failed: Tensor  # [N] bool, stopped early because the model gave logits that are not finite
    texts: list[str]
    wall_s: float
    seconds: Mapping[str, float]  # of wall_s by part: forward, score (vocabulary projection and proposals), policy

    @property
    def model_s(self) -> float:
        """Seconds inside the model and its vocabulary."""
        return self.seconds.get("forward", 0.0) + self.seconds.get("score", 0.0)


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
