"""The values that pass between the roles of the decoding loop. All of them are frozen: a step makes new ones.

The package has two coordinate systems. *Columns* 0..L-1 count the padded batch: the prompt, left-padded to P columns,
and the canvas behind it. Plans and models use columns. *Generation positions* 0..G-1 count the canvas. Everything else
uses generation positions.

In the shapes, B is the number of rows of the batch, L of columns, G of canvas positions, R of rows of one forward,
N of scored positions, V of tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.kinds import check_kind

CONFIDENCE = "float32 softmax of unscaled logits, mask token excluded, before temperature"
NOT_PROPOSED = -1  # stands in `DecodeState.previous` where the last step proposed nothing
UNRESTRICTED = -1  # fills the unused places of `DecodeState.allowed`
SPAN = 256  # tokens of the vocabulary that are searched together for the most probable one


@dataclass(frozen=True)
class RowMemory:
    """The memory that a component keeps of a run.

    Every tensor in it has one entry for each row. Every other value is the same for all rows.
    """

    def rows(self, index: Tensor) -> Self:
        """Return the memory of some rows.

        Args:
            index: [R] long, the numbers of the rows, or [B] bool, True for the rows.
        """
        return replace(self, **{name: _rows(value, index) for name, value in vars(self).items()})

    @classmethod
    def stack(cls, memories: Sequence[Self]) -> Self:
        """Return the memory of the rows of several runs, one run behind the other.

        Args:
            memories: The memories of the runs.
        """
        return replace(
            memories[0],
            **{name: _stacked([getattr(memory, name) for memory in memories]) for name in vars(memories[0])},
        )


def _rows(value: Any, index: Tensor) -> Any:
    if isinstance(value, RowMemory):
        return value.rows(index)
    return value[index.to(value.device)] if isinstance(value, Tensor) else value


def _stacked(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, RowMemory):
        return type(first).stack(values)
    return torch.cat(list(values)) if isinstance(first, Tensor) else first


@dataclass(frozen=True)
class ModelSpec:
    """The facts about a model that the loop needs, and to which recordings and policies are tied.

    Attributes:
        name: The name of the model in messages.
        mask_id: The id of the mask token.
        eot_ids: The ids that end an answer. The first one fills closed positions.
        pad_id: The id that fills the columns of left padding.
        vocab_size: The number of tokens.
        max_length: The most tokens that prompt and canvas may have together.
        shifted_logits: True where the output at position i predicts the token at i + 1, as in Dream.
        fingerprint: 16 hex digits that identify the configuration and the weights.
        causal_block: The tokens of a block, for a model in which a block sees itself and the blocks before it. None
            where every token sees every other token.
        special_tokens: control tokens of the tokenizer.
        vocabulary: The id of every token by its text. It is empty for a model without a tokenizer.
        text_of: The function that turns token ids into the text of an answer. None for a model without a tokenizer.
    """

    name: str
    mask_id: int
    eot_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int
    max_length: int
    shifted_logits: bool
    fingerprint: str
    causal_block: int | None = None
    special_tokens: tuple[str, ...] = field(default=(), compare=False, repr=False)
    vocabulary: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    text_of: Callable[[Sequence[int]], str] | None = field(default=None, compare=False, repr=False)

    @property
    def shift(self) -> int:
        """How many columns left of a token the output lies that predicts it: 1 with shifted logits, else 0."""
        return int(self.shifted_logits)


@dataclass(frozen=True)
class Window(RowMemory):
    """The positions that a policy may commit in each row: start <= position < stop.

    Attributes:
        start: [B] long, the first position.
        stop: [B] long, the position behind the last one.
        most: At least the number of positions of the longest window, if the host knows it. The loop fills it in before
            the forward.
    """

    start: Tensor
    stop: Tensor
    most: int | None = None

    @classmethod
    def stack(cls, memories: Sequence[Window]) -> Window:
        return replace(super().stack(memories), most=None)

    @property
    def width(self) -> int:
        """At least the number of positions of the longest window. Without `most`, this waits for the device."""
        return int((self.stop - self.start).max()) if self.most is None else self.most

    def mask(self, gen_length: int) -> Tensor:
        """Mark the positions of the window.

        Args:
            gen_length: G.

        Returns:
            [B, G] bool.
        """
        position = torch.arange(gen_length, device=self.start.device)
        return (position >= self.start[:, None]) & (position < self.stop[:, None])


@dataclass(frozen=True)
class DecodeState(RowMemory):
    """All state of a run.

    The field `masked` decides which positions are still to decode. The token ids do not, since a prompt may hold the
    literal mask id.

    Attributes:
        tokens: [B, L] long, the prompts and the canvas.
        pad: [B] long, the columns of left padding.
        masked: [B, G] bool, the positions that are still to decode.
        given: [B, G] bool, the positions whose token the caller fixed. No policy changes them.
        allowed: [B, G, A] long, the ids that a position may hold. Unused places hold `UNRESTRICTED`. A position whose
            places all hold `UNRESTRICTED` may hold any id. None where every position may hold any id.
        end: [B] long, the first position that is closed, G where none is.
        visible: [B] long, the first position that was cut from the sequence, G where none was.
        committed_at: [B, G] long, the step in which the position was committed, -1 where it was not.
        committed_with: [B, G] float32, the confidence that the proposal of the position had in the step that committed
            it, 0 where the position was not committed.
        commits: [B] long, the number of commits so far, those that were closed or taken back later included.
        previous: [B, G] long, the tokens that the last step proposed in its window, `NOT_PROPOSED` elsewhere.
        step: [B] long, the steps that the row has taken.
        forwards: [B] long, the forwards of the model in which the row took part.
        columns: [B] long, the columns that those forwards computed, shadow columns included.
        auxiliary_forwards: [B] long, the forwards of a policy's auxiliary model.
        revoked: [B] long, the number of commits that were taken back.
        edited: [B] long, the number of committed tokens that were overwritten.
        flip_flops: [B] long, the number of commits that wrote the token again that was last taken back there.
        taken_back: [B, G] long, the token that was last taken back at the position, `NOT_PROPOSED` for none.
        stays: [B] bool, True where the policy keeps the window for one more step although it has no mask left.
        index: [B] long, the number of the prompt in the caller's list.
        seed: [B] long, the seed of the row's own random draws.
        failed: [B] bool, True where the row ended because the model gave logits that are not finite.
        window: The window that is open in each row.
        spec: The facts about the model of the run.
    """

    tokens: Tensor
    pad: Tensor
    masked: Tensor
    given: Tensor
    allowed: Tensor | None
    end: Tensor
    visible: Tensor
    committed_at: Tensor
    committed_with: Tensor
    commits: Tensor
    previous: Tensor
    step: Tensor
    forwards: Tensor
    columns: Tensor
    auxiliary_forwards: Tensor
    revoked: Tensor
    edited: Tensor
    flip_flops: Tensor
    taken_back: Tensor
    stays: Tensor
    index: Tensor
    seed: Tensor
    failed: Tensor
    window: Window
    spec: ModelSpec

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
        """Make the state before the first step: left-padded prompts and behind them a canvas of masks.

        Args:
            prompts: The token ids of each prompt.
            gen_length: G, the tokens of the canvas.
            spec: The facts about the model.
            index: The numbers of the prompts in the caller's list; None numbers them in order.
            seed: The seeds of the rows' random draws; None takes the index of each row.
            given: [B, G] long, the tokens that the caller fixes, -1 where the model decodes; None fixes no token.
            allowed: [B, G, A] long, as the attribute `allowed`.
            device: The device of all tensors.

        Returns:
            The state.
        """
        count = len(prompts)
        width = max(map(len, prompts))
        device = torch.device(device)
        numbers = list(range(count)) if index is None else list(index)
        rows = [[spec.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        fixed = torch.full((count, gen_length), -1, device=device) if given is None else given.to(device)
        with device:
            tokens = torch.cat(
                (torch.tensor(rows, dtype=torch.long), torch.where(fixed < 0, spec.mask_id, fixed)), dim=1
            )
            pad = torch.tensor([width - len(prompt) for prompt in prompts])
            seeds = torch.tensor(list(numbers if seed is None else seed))
            state = cls._at(tokens, pad, fixed < 0, torch.tensor(numbers), seeds, spec)
        return replace(state, allowed=None if allowed is None else allowed.to(device))

    @classmethod
    def of_block(cls, tokens: Tensor, masked: Tensor, spec: ModelSpec) -> DecodeState:
        """Make the state of a block that is a canvas without a prompt, for a policy that decides outside a run.

        Args:
            tokens: [B, W] long, the tokens of the block.
            masked: [B, W] bool, the positions that are still to decode.
            spec: The facts about the model.

        Returns:
            A state whose window is the whole block.
        """
        number = torch.arange(len(tokens), device=tokens.device)
        state = cls._at(tokens, torch.zeros_like(number), masked, number, number, spec)
        return replace(state, given=torch.zeros_like(masked), window=Window(torch.zeros_like(number), state.end))

    @classmethod
    def _at(
        cls, tokens: Tensor, pad: Tensor, masked: Tensor, index: Tensor, seed: Tensor, spec: ModelSpec
    ) -> DecodeState:
        """Make a state before its first step. The arguments are the attributes of their names."""
        zeros = torch.zeros_like(index)
        full = zeros + masked.shape[1]
        nowhere = torch.full_like(masked, -1, dtype=torch.long)
        return cls(
            tokens=tokens,
            pad=pad,
            masked=masked,
            given=~masked,
            allowed=None,
            end=full,
            visible=full,
            committed_at=nowhere,
            committed_with=torch.zeros_like(masked, dtype=torch.float32),
            commits=zeros,
            previous=nowhere,
            step=zeros,
            forwards=zeros,
            columns=zeros,
            auxiliary_forwards=zeros,
            revoked=zeros,
            edited=zeros,
            flip_flops=zeros,
            taken_back=torch.full_like(nowhere, NOT_PROPOSED),
            stays=zeros > 0,
            index=index,
            seed=seed,
            failed=zeros > 0,
            window=Window(zeros, zeros),
            spec=spec,
        )

    @property
    def gen_length(self) -> int:
        """G, the number of positions of the canvas."""
        return self.masked.shape[1]

    @property
    def prompt_width(self) -> int:
        """P, the number of columns before the canvas, left padding included."""
        return self.tokens.shape[1] - self.gen_length

    @property
    def longest_prompt(self) -> int:
        """The number of columns before the canvas that the prompts need."""
        return self.prompt_width - int(self.pad.min())

    @property
    def canvas(self) -> Tensor:
        """The tokens of the canvas, [B, G] long, a view of `tokens`."""
        return self.tokens[:, self.prompt_width :]

    @property
    def open(self) -> Tensor:
        """The rows that still have a masked position, or whose policy looks once more at its window, [B] bool."""
        return self.masked.any(1) | self.stays

    @property
    def leftmost_mask(self) -> Tensor:
        """The first masked position of each row, [B] long. It is 0 for finished rows, which no plan contains."""
        return self.masked.int().argmax(1)

    @property
    def given_end(self) -> Tensor:
        """The position behind the last token that the caller gave, [B] long, 0 where none was given."""
        behind = torch.arange(1, self.gen_length + 1, device=self.given.device)
        return torch.where(self.given, behind, 0).amax(1)

    @property
    def behind_given(self) -> Tensor:
        """The positions behind the last token that the caller gave, [B, G] bool. Only there may an answer end."""
        return torch.arange(self.gen_length, device=self.given.device) >= self.given_end[:, None]

    @property
    def decided(self) -> Tensor:
        """The positions that are committed or given, and not closed, [B, G] bool."""
        return ~self.masked & (torch.arange(self.gen_length, device=self.end.device) < self.end[:, None])

    def moved(self, added: int) -> DecodeState:
        """Return the state with more columns of left padding, or with fewer of them.

        Args:
            added: The number of columns; a negative number takes columns away, which must be padding in every row.
        """
        # the padding may hold any token, since no column sees it
        tokens = self.tokens[:, -added:] if added < 0 else functional.pad(self.tokens, (added, 0))
        return replace(self, tokens=tokens, pad=self.pad + added)

    def written(self, commit: Commit, proposals: Tensor) -> DecodeState:
        """Write a commit into the canvas, and count nothing. Positions that are taken back become masks again.

        Args:
            commit: The commit.
            proposals: [B, G] long, the tokens that are written where `commit.tokens` is None.

        Returns:
            The state with the canvas and the masks after the commit, and everything else as it was before.
        """
        canvas = torch.where(commit.mask, commit.tokens_or(proposals), self.canvas)
        masked = self.masked & ~commit.mask
        if commit.revoke is not None:
            canvas = canvas.masked_fill(commit.revoke, self.spec.mask_id)
            masked = masked | commit.revoke
        return replace(self, tokens=self.tokens.slice_scatter(canvas, 1, self.prompt_width), masked=masked)

    def commit(self, commit: Commit, proposals: Tensor) -> DecodeState:
        """Write a commit into the canvas, and count it.

        Args:
            commit: The commit.
            proposals: [B, G] long, the tokens that are written where `commit.tokens` is None.

        Returns:
            The state after the commit.
        """
        decoded = commit.mask & self.masked
        committed_at = torch.where(commit.mask, self.step[:, None], self.committed_at)
        again = decoded & (commit.tokens_or(proposals) == self.taken_back)
        revoked = self.revoked
        taken_back = self.taken_back
        auxiliary_forwards = self.auxiliary_forwards
        if commit.auxiliary is not None:
            auxiliary_forwards = auxiliary_forwards + commit.auxiliary
        if commit.revoke is not None:
            committed_at = committed_at.masked_fill(commit.revoke, -1)
            revoked = revoked + commit.revoke.sum(1)
            taken_back = torch.where(commit.revoke, self.canvas, taken_back)
        return replace(
            self.written(commit, proposals),
            committed_at=committed_at,
            commits=self.commits + commit.mask.sum(1),
            revoked=revoked,
            edited=self.edited + (commit.mask ^ decoded).sum(1),
            flip_flops=self.flip_flops + again.sum(1),
            taken_back=taken_back,
            auxiliary_forwards=auxiliary_forwards,
        )

    def close(self, end: Tensor, cut: bool, fails: Tensor | None = None) -> DecodeState:
        """End rows: close the positions from their end on, so that they hold the model's first end-of-text.

        Args:
            end: [B] long, the first position of each row that is closed, never behind the row's present end.
            cut: True removes the closed positions from the sequence, so that the model sees them no more.
            fails: [B] bool, the rows in which masked positions before the end hold the end-of-text too, since nothing
                more can be decided in them; None for no row.

        Returns:
            The state after closing.
        """
        closed = torch.arange(self.gen_length, device=end.device) >= end[:, None]
        if fails is not None:
            closed = closed | (self.masked & fails[:, None])
        canvas = self.canvas.masked_fill(closed, self.spec.eot_ids[0])
        return replace(
            self,
            tokens=self.tokens.slice_scatter(canvas, 1, self.prompt_width),
            masked=self.masked.masked_fill(closed, False),
            committed_at=self.committed_at.masked_fill(closed, -1),
            end=end,
            visible=torch.minimum(self.visible, end) if cut else self.visible,
        )


@dataclass(frozen=True)
class ForwardPlan:
    """One call of the model: the rows and columns to compute, the columns they see, and the columns to score.

    With a `span`, the model keeps the keys and values of the query, and the query attends to the kept columns
    first..stop-1 of the span. Without a span the model keeps nothing, and the query attends to itself. A row with fewer
    than Q columns to compute repeats its last column.

    A cache makes plans on the host. The loop copies them to the device of the model.

    Attributes:
        rows: [R] long, the numbers of the rows, ascending.
        query: [R, Q] long, the columns to compute.
        position: [R, Q] long, the place of each query column in the row's own sequence, whose first real token is at 0.
        key_mask: [R, K] or [R, Q, K] bool, False for columns that are not seen; None where all are seen.
        score: [R, Q] bool, the query columns for which the model proposes a token.
        columns: [R] long, the number of different columns that are computed in each row.
        span: The first column, and the column behind the last one, of the K columns that the query attends to. None
            where the query attends to itself, and K = Q.
        shadow: [R, S] long, the columns whose token the model predicts as if it knew every token but that one.
        asked: [R, M] long, the places in the query and the shadow columns behind it whose hidden states are wanted; the
            last layer leaves out the others. None for all. The loop fills it in.
    """

    rows: Tensor
    query: Tensor
    position: Tensor
    key_mask: Tensor | None
    score: Tensor
    columns: Tensor
    span: tuple[int, int] | None = None
    shadow: Tensor | None = None
    asked: Tensor | None = None


@dataclass(frozen=True)
class LogitsPart:
    """The logits of some scored positions.

    Attributes:
        rows: [n] long, the row of each position.
        positions: [n] long, the generation position.
        logits: [n, V] float32, with the mask token at -inf.
        draw: The draw that made the proposals of these positions; its noise is [n, V].
    """

    rows: Tensor
    positions: Tensor
    logits: Tensor
    draw: Draw

    def of(self, values: Tensor) -> Tensor:
        """Return the values of these positions.

        Args:
            values: [B, G] or [B, G, ...].

        Returns:
            [n] or [n, ...].
        """
        return values[self.rows, self.positions]


@dataclass(frozen=True)
class Prediction:
    """The proposals of a step. Entries at which `valid` is False are zeros.

    Attributes:
        tokens: [B, G] long, the proposed tokens.
        confidence: [B, G] float32, the probability of the proposed token before temperature.
        valid: [B, G] bool, the positions that the plans of this step scored. N of them are True.
        extras: [B, G] float32 by name, as far as a component needs them: `margin`, `logit_margin` and `entropy` of the
            proposals; and of the committed tokens of the window, each given all tokens but itself, the probability
            `leave_one_out`, the number of more probable tokens `leave_one_out_rank`, and the entropy in nats
            `leave_one_out_entropy`.
        parts: Gives the logits of the scored positions, a few positions at a time, as often as it is called. None where
            no component needs `logits`.
        hidden: [N, D], the hidden states from which the logits of the scored positions are computed, in row-major order
            and in the type of the model. None where no component needs `hidden`.
        top_ids: [N, 4] long, the four most probable tokens of the scored positions in row-major order. None where no
            component needs `top`, like the next one.
        top_shares: [N, 4] float32, the probabilities of these tokens.
        attention: [B, L, L] float32, how much each column attends to each, as the mean over all heads and the last
            eighth of the layers; 0 in the padding and where the forward computed nothing. None where no component needs
            `attention`.
    """

    tokens: Tensor
    confidence: Tensor
    valid: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Callable[[], Iterable[LogitsPart]] | None = None
    hidden: Tensor | None = None
    top_ids: Tensor | None = None
    top_shares: Tensor | None = None
    attention: Tensor | None = None

    def extra(self, name: str) -> Tensor:
        """Return an extra.

        Args:
            name: The name of the extra, such as `margin`.

        Returns:
            [B, G] float32.

        Raises:
            ValueError: No component asked for the extra. A component asks for it in its attribute `needs`.
        """
        if name not in self.extras:
            raise ValueError(
                f"the prediction has no {name!r}: the component that reads it must name it in its attribute 'needs'"
            )
        return self.extras[name]

    def logits_parts(self) -> Iterable[LogitsPart]:
        """Return the logits of the scored positions, a few positions at a time.

        The logits of a whole canvas may not fit into memory. Parts that do not fit together are computed anew whenever
        this is called. The parts hold the positions of failed rows too, which are not valid and never eligible.

        Raises:
            ValueError: No component asked for `logits`.
        """
        if self.parts is None:
            raise ValueError(
                "the prediction has no 'logits': the component that reads them must name them in its attribute 'needs'"
            )
        return self.parts()

    @property
    def logits(self) -> Tensor | None:
        """The logits of all valid positions together, [N, V] float32 in row-major order, None where nobody needs them.

        Reading them waits for the device and takes the memory of all of them. `logits_parts` does neither.
        """
        return None if self.parts is None else self._together(lambda part: part.logits)

    def _together(self, of: Callable[[LogitsPart], Tensor]) -> Tensor:
        """Put one value of all parts together, in the row-major order of the valid positions."""
        parts = [(part.rows * self.valid.shape[1] + part.positions, of(part)) for part in self.logits_parts()]
        place = torch.cat([at for at, _ in parts])
        order = place.argsort()
        return torch.cat([values for _, values in parts])[order[self.valid.flatten()[place[order]]]]


@dataclass(frozen=True)
class Commit:
    """The decision of a policy in a step.

    A policy overwrites a committed token by committing its position again, with another token.

    Attributes:
        mask: [B, G] bool, the positions to commit.
        tokens: [B, G] long, the tokens to write; None writes the proposals.
        revoke: [B, G] bool, the committed positions of the window that become masks again; None revokes nothing.
        forced: [B, G] bool, the part of `mask` that the policy's rule alone would not commit.
        auxiliary: [B] long, the forwards of an auxiliary model that the decision took; None for none.
        stay: [B] bool, the rows whose window stays open in the next step even if it has no mask left then, so that the
            policy sees its tokens once more. It counts while `Policy.revisions` last; None for no row.
        memory: The memory of the policy's next step; None keeps the present one.
    """

    mask: Tensor
    tokens: Tensor | None = None
    revoke: Tensor | None = None
    forced: Tensor | None = None
    auxiliary: Tensor | None = None
    stay: Tensor | None = None
    memory: Any = None

    def tokens_or(self, proposals: Tensor) -> Tensor:
        """Return the tokens that are written at the positions of `mask`, [B, G] long.

        Args:
            proposals: [B, G] long, the proposed tokens.
        """
        return proposals if self.tokens is None else self.tokens


@dataclass(frozen=True)
class Step:
    """One step of a run, as observers receive it.

    Attributes:
        state: The state before the commit.
        prediction: The proposals.
        commit: The commit that was written, with the positions that the loop added.
        after: The state after the commit and after the stop rule.
    """

    state: DecodeState
    prediction: Prediction
    commit: Commit
    after: DecodeState

    @property
    def tokens(self) -> Tensor:
        """The tokens that were written at the positions of `commit.mask`, [B, G] long."""
        return self.commit.tokens_or(self.prediction.tokens)

    @property
    def log_probability(self) -> Tensor:
        """The log-probability of each committed proposal, [B, G] float32. It is 0 where no proposal was committed."""
        proposed = self.commit.mask & (self.tokens == self.prediction.tokens) & self.prediction.valid
        return self.prediction.confidence.log().masked_fill(~proposed, 0.0)


@dataclass(frozen=True, repr=False)
class DecodeResult:
    """The answers of `decode`, in the order of the caller's prompts. N is the number of prompts.

    Attributes:
        tokens: [N, G] long, the whole canvas of each prompt.
        lengths: [N] long, the answer tokens: those before the first end-of-text.
        committed_at: [N, G] long, the step in which each position was committed, -1 for positions that a stop rule
            closed.
        forwards: [N] long, the forwards of the model.
        columns: [N] long, the columns that those forwards computed.
        auxiliary_forwards: [N] long, the forwards of a policy's auxiliary model.
        revoked: [N] long, the number of commits that were taken back.
        edited: [N] long, the number of committed tokens that were overwritten.
        flip_flops: [N] long, the number of commits that wrote the token again that was last taken back there.
        failed: [N] bool, True where a prompt stopped early because the model gave logits that are not finite.
        texts: The answers as texts.
        wall_s: The seconds that decoding took.
        seconds: The seconds of `wall_s` by part: `forward`, `score` (projection to the vocabulary and proposals) and
            `policy`.
    """

    tokens: Tensor
    lengths: Tensor
    committed_at: Tensor
    forwards: Tensor
    columns: Tensor
    auxiliary_forwards: Tensor
    revoked: Tensor
    edited: Tensor
    flip_flops: Tensor
    failed: Tensor
    texts: list[str]
    wall_s: float
    seconds: Mapping[str, float]

    @property
    def model_s(self) -> float:
        """The seconds inside the model, its projection to the vocabulary included."""
        return self.seconds.get("forward", 0.0) + self.seconds.get("score", 0.0)

    @property
    def step_map(self) -> list[list[int]]:
        """For each prompt the step in which each token of its answer was committed; -1 where the caller gave it."""
        lengths = self.lengths.tolist()
        return [steps[:length] for steps, length in zip(self.committed_at.tolist(), lengths, strict=True)]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the answers and their counts as JSON values, one entry for each prompt in every list."""
        counts = ("lengths", "forwards", "columns", "auxiliary_forwards", "revoked", "edited", "flip_flops", "failed")
        described: dict[str, list[Any]] = {"texts": self.texts, "step_map": self.step_map}
        return described | {name: getattr(self, name).tolist() for name in counts}

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        """Return the answers as texts, in the order of the prompts."""
        return iter(self.texts)

    def __repr__(self) -> str:
        tokens = int(self.lengths.sum())
        forwards = int(self.forwards.sum())
        return f"DecodeResult({len(self)} answers, {tokens} tokens, {forwards} forwards, {self.wall_s:.2f} s)"


@dataclass(frozen=True)
class Sampling:
    """The rule by which tokens are drawn. The default takes the most probable token.

    Attributes:
        temperature: Divides the logits; 0 takes the most probable token.
        top_p: Draws from the smallest set of tokens that has at least this probability at the temperature.
        top_k: Draws from this many most probable tokens; 0 draws from all.

    Raises:
        ValueError: A value is no number, or out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        for name, kind in {"temperature": float, "top_p": float, "top_k": int}.items():
            object.__setattr__(self, name, check_kind(name, getattr(self, name), kind))
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected 0 or more, and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a probability above 0, at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 (all tokens) or more")


GREEDY = Sampling()


def row_seeds(seed: int, numbers: Iterable[int]) -> list[int]:
    """Return the seeds of rows, which differ between prompts and between the caller's seeds.

    Args:
        seed: The seed that the caller gave.
        numbers: The number of each row's prompt in the caller's list.
    """
    return [(seed * 1_000_003 + number) % 2**62 for number in numbers]


@dataclass(frozen=True)
class Draw:
    """One draw of N tokens.

    A draw that is applied to other logits uses the same noise again, so that equal distributions always give equal
    tokens. This is known as Gumbel coupling.

    Attributes:
        sampling: The rule by which tokens are drawn.
        noise: [N, V] float64, Gumbel noise; None takes the most probable token.
    """

    sampling: Sampling
    noise: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Draw tokens.

        Args:
            logits: [N, V] float.

        Returns:
            [N] long.
        """
        if self.noise is None:
            return best_tokens(logits)
        scaled = restrict(logits.double() / self.sampling.temperature, self.sampling)
        return (scaled + self.noise[:, : logits.shape[-1]]).argmax(-1)


def best_tokens(logits: Tensor) -> Tensor:
    """Return the most probable token of each position, and the first one of several that are equally probable.

    On a CPU, torch's argmax over a large vocabulary takes a time that shows beside a small model's forward. The largest
    logit of each span of tokens takes a tenth of it, and then a single span is left to search.

    Args:
        logits: [N, V] float.

    Returns:
        [N] long.
    """
    size = logits.shape[-1]
    if logits.device.type != "cpu" or size < 2 * SPAN:
        return logits.argmax(-1)
    whole = size // SPAN * SPAN
    largest = logits[:, :whole].unflatten(-1, (-1, SPAN)).amax(-1)  # [N, spans]
    if whole < size:
        largest = torch.cat((largest, logits[:, whole:].amax(-1, keepdim=True)), dim=-1)
    first = largest.argmax(-1, keepdim=True) * SPAN
    span = (first + torch.arange(SPAN, device=logits.device)).clamp_max(size - 1)
    return (first + logits.gather(1, span).argmax(-1, keepdim=True))[:, 0]


def restrict(logits: Tensor, sampling: Sampling) -> Tensor:
    """Set the logits outside the `top_k` and `top_p` sets to -inf. The most probable token always stays.

    Args:
        logits: [N, V] float, already divided by the temperature.
        sampling: The rule that names the sets.

    Returns:
        [N, V] float.
    """
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        dropped = probability.cumsum(-1) - probability >= sampling.top_p  # the tokens before this one already suffice
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits
