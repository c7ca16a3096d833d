"""One step of a policy over a block of logits, for engines that run the model themselves.

An engine hands over the logits of a block, its tokens, and which of them are still to decode. It receives the proposals
and the commit of the policy, which are those of the package's own loop. The block is a canvas without a prompt, so that
every policy runs unchanged, except for those that read more than the block.

In the shapes, B is the number of rows, W of positions of a block, V of tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.errors import UserError
from learn2pd.loop.commits import at_least, outside, refusal, stays
from learn2pd.loop.proposals import EXTRAS, SCORE_VALUES, propose, row_generators, row_noise
from learn2pd.roles import Policy
from learn2pd.tensors import widened
from learn2pd.types import (
    GREEDY,
    NOT_PROPOSED,
    Commit,
    DecodeState,
    Draw,
    LogitsPart,
    ModelSpec,
    Prediction,
    RowMemory,
    Sampling,
    Window,
)

OF_LOGITS = frozenset({*EXTRAS, "logits"})  # the extras that come from the logits of the block alone
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WHOLE = (torch.int64,)


@dataclass(frozen=True)
class BlockMemory(RowMemory):
    """What a step leaves for the next step of the same block. Rows can be taken out of it and stacked.

    Attributes:
        state: The state of the block.
        own: The memory of the policy; None where it remembers nothing.
    """

    state: DecodeState
    own: Any = None


@dataclass(frozen=True)
class BlockStep:
    """The result of one step over a block.

    Attributes:
        proposals: [B, W] long, the tokens that the model proposes, 0 where it was not asked.
        confidence: [B, W] float32, the probability of the proposals, 0 where the model was not asked.
        commit: The commit of the policy, with the positions that were added so that a block ends.
        tokens: [B, W] long, the block after the commit.
        masked: [B, W] bool, the positions that are still to decode after the commit.
        open: [B] bool, the rows of which the policy wants another step of this block.
        failed: [B] bool, the rows whose logits are not finite. Nothing is committed in them.
        memory: The memory for the next step of the same block.
    """

    proposals: Tensor
    confidence: Tensor
    commit: Commit
    tokens: Tensor
    masked: Tensor
    open: Tensor
    failed: Tensor
    memory: BlockMemory


@checked()
def check_block_policy(policy: Policy, engine: str = "one step over a block") -> None:
    """Refuse a policy that cannot decide from a block alone.

    Args:
        policy: The policy.
        engine: The name of what runs the policy, for messages.

    Raises:
        UserError: The policy reads more than the block; the message names both sides.
    """
    lacking = [
        reason
        for reason, holds in (
            ("proposals on the whole canvas", policy.looks_ahead),
            ("the whole canvas or the steps of the whole run", policy.reads_canvas),
            ("a model of its own with the prompt", policy.auxiliary),
            ("the answer beforehand", policy.knows_answer),
            *((f"the extra {name!r}", True) for name in sorted(policy.needs - OF_LOGITS)),
        )
        if holds
    ]
    if lacking:
        raise UserError(f"policy {policy.name!r} needs {lacking[0]}; {engine} gives it the logits of one block")


@checked()
def start_block(
    policy: Policy,
    tokens: Tensor,
    masked: Tensor,
    mask_id: int,
    vocab_size: int,
    seed: Tensor | None = None,
    step: Tensor | None = None,
) -> BlockMemory:
    """Make the memory before the first step of a block.

    Args:
        policy: The policy.
        tokens: [B, W] long, the tokens of the block. W may be larger than the window of a row.
        masked: [B, W] bool, the positions that are still to decode. The policy never changes the others.
        mask_id: The id of the mask token.
        vocab_size: V, the number of logits of a position.
        seed: [B] long, the seeds of the rows' random draws; None numbers the rows.
        step: [B] long, the steps that each row has taken before this block; None for none. Draws depend on it.

    Returns:
        The memory.

    Raises:
        UserError: The policy cannot decide from a block alone, or an argument is of another type or shape.
    """
    check_block_policy(policy)
    _check_block(tokens, masked, mask_id, vocab_size)
    for name, values in (("seed", seed), ("step", step)):
        if values is not None:
            _check_tensor(name, values, tokens.shape[:1], WHOLE)
    spec = ModelSpec("the engine's model", mask_id, (), 0, vocab_size, tokens.shape[1], False, "")
    state = replace(DecodeState.of_block(tokens, masked, spec), given=~masked)
    state = replace(state, seed=state.seed if seed is None else seed, step=state.step if step is None else step)
    return BlockMemory(state, policy.start(state, spec))


@checked()
@torch.no_grad()
def block_step(
    policy: Policy,
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    window: Window,
    memory: BlockMemory | None = None,
    *,
    mask_id: int,
    sampling: Sampling = GREEDY,
    least: Tensor | int = 1,
) -> BlockStep:
    """Let a policy decide in one step over a block.

    The tokens and commits are those of the package's own loop with the same block, if every block begins with no
    memory and every later step of it gets the memory of the step before.

    Args:
        policy: The policy.
        logits: [B, W, V] float, at each position the logits of its own token. A model whose output at a position
            predicts the next token needs a shift before.
        tokens: [B, W] long, the tokens of the block.
        masked: [B, W] bool, the positions that are still to decode. A prompt may hold the mask token, so that the
            tokens do not say it.
        window: The positions of the block that the policy may commit in each row, such as those behind the prompt.
        memory: The memory of the last step of this block; None in its first step.
        mask_id: The id of the mask token, which is never proposed.
        sampling: The rule by which tokens are drawn. Draws depend on the seed and the step of each row, see
            `start_block`.
        least: How many positions a step commits at least: one number, or [B] long.

    Returns:
        Proposals, commit, the block after the commit, and the memory of the next step.

    Raises:
        UserError: The policy cannot decide from a block alone, it commits positions that it may not, or an argument is
            of another type or shape.
    """
    _check_tensor("tokens", tokens, ("B", "W"), WHOLE)
    _check_tensor("logits", logits, (*tokens.shape, "V"), FLOATS)
    _check_block(tokens, masked, mask_id, logits.shape[-1])
    _check_tensor("window.start", window.start, tokens.shape[:1], WHOLE)
    _check_tensor("window.stop", window.stop, tokens.shape[:1], WHOLE)
    if isinstance(least, Tensor):
        _check_tensor("least", least, tokens.shape[:1], WHOLE)
    if memory is not None:
        _check_tensor("memory.state.tokens", memory.state.tokens, tokens.shape, WHOLE)
    else:
        memory = start_block(policy, tokens, masked, mask_id, logits.shape[-1])
    inside = window.mask(tokens.shape[1])
    state = replace(memory.state, tokens=tokens, masked=masked & inside, window=window)
    opened = state.open
    if not bool(opened.any()):  # this waits for the device
        return _nothing(state, masked, memory)
    scored = inside & (opened[:, None] if policy.scores_committed else state.masked)
    prediction, failed = _predict(logits, scored, state, policy.needs, sampling, mask_id)
    eligible = state.masked & prediction.valid
    commit = policy.select(prediction, eligible, state, memory.own)
    own = memory.own if commit.memory is None else commit.memory
    if bool(outside(commit, eligible, state, policy).any()):  # so does this
        raise refusal(policy)
    commit = at_least(least, commit, prediction, eligible)
    after = state.commit(commit, prediction.tokens)
    after = replace(
        after,
        step=state.step + opened,
        failed=failed,
        previous=torch.where(inside & prediction.valid, prediction.tokens, NOT_PROPOSED),
        stays=stays(commit, state, state.end, policy) & ~failed,
    )
    return BlockStep(
        proposals=prediction.tokens,
        confidence=prediction.confidence,
        commit=commit,
        tokens=after.tokens,
        masked=(masked & ~inside) | after.masked,
        open=after.open & ~failed,
        failed=failed,
        memory=BlockMemory(after, own),
    )


def _check_block(tokens: Tensor, masked: Tensor, mask_id: int, vocab_size: int) -> None:
    """Refuse a block that is none, and a mask token without a logit.

    Raises:
        UserError: An argument is of another type or shape, or out of range.
    """
    _check_tensor("tokens", tokens, ("B", "W"), WHOLE)
    _check_tensor("masked", masked, tokens.shape, (torch.bool,))
    if not 0 <= mask_id < vocab_size:
        raise UserError(f"mask_id={mask_id}: expected an id from 0 to {vocab_size - 1}, for which there are logits")


def _check_tensor(name: str, values: Tensor, shape: Sequence[int | str], kinds: Sequence[torch.dtype]) -> None:
    """Refuse a tensor of another shape or type. Where the shape has a letter, any size will do.

    Raises:
        UserError: The tensor is refused; the message names both sides.
    """
    fits = len(shape) == values.ndim and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(shape, values.shape, strict=True)
    )
    if not fits or values.dtype not in kinds:
        wanted = f"[{', '.join(map(str, shape))}] and type {' or '.join(map(str, kinds))}"
        raise UserError(
            f"{name} is a tensor of shape {list(values.shape)} and type {values.dtype}: expected shape {wanted}"
        )


def _nothing(state: DecodeState, masked: Tensor, memory: BlockMemory) -> BlockStep:
    """Return the result of a step in which no row is open."""
    none = torch.zeros_like(masked)
    return BlockStep(
        proposals=torch.zeros_like(state.tokens),
        confidence=torch.zeros(masked.shape, device=masked.device),
        commit=Commit(none),
        tokens=state.tokens,
        masked=masked,
        open=state.open,
        failed=torch.zeros_like(state.failed),
        memory=memory,
    )


def _predict(
    logits: Tensor, scored: Tensor, state: DecodeState, needs: frozenset[str], sampling: Sampling, mask_id: int
) -> tuple[Prediction, Tensor]:
    """Make the proposals of the scored positions [B, W] bool, and mark the rows [B] whose logits are not finite."""
    rows, places = scored.nonzero(as_tuple=True)
    noise = None
    if sampling.temperature:
        noise = row_noise(rows.cpu(), row_generators(state), logits.shape[-1]).to(rows.device)
    values = {name: torch.zeros(scored.shape, device=logits.device) for name in EXTRAS if name in needs}
    tokens = torch.zeros_like(state.canvas)
    confidence = torch.zeros(scored.shape, device=logits.device)
    kept: list[LogitsPart] = []
    # the float32 logits of a whole batch may not fit into memory
    for part in torch.arange(len(rows), device=rows.device).split(max(1, SCORE_VALUES // logits.shape[-1])):
        at = (rows[part], places[part])
        asked = widened(logits[at])
        asked[:, mask_id] = -torch.inf
        draw = Draw(sampling, None if noise is None else noise[part])
        if "logits" in needs:
            kept.append(LogitsPart(*at, asked.clone(), draw))
        tokens[at], sure, extras = propose(asked, draw, needs)
        confidence[at] = sure.float()
        for name, extra in extras.items():
            values[name][at] = extra.float()
    failed = confidence.sum(1).isnan()
    valid = scored & ~failed[:, None]
    prediction = Prediction(tokens, confidence.masked_fill(failed[:, None], 0), valid, values)
    return replace(prediction, parts=(lambda: kept) if "logits" in needs else None), failed
