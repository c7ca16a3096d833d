"""`decode`: prompts in, answers out, in batches. The loop itself is in loop/loop.py and knows neither texts nor batches of batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.loop.loop import decode_batch
from learn2pd.loop.observing import CallbackObserver, Observer
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.method import Method
from learn2pd.models.delimiters import newline_ids
from learn2pd.models.loading import Model
from learn2pd.models.prompts import prompt_list
from learn2pd.registry import Provided, build
from learn2pd.roles import Cache, Policy, Scheduler, StopRule
from learn2pd.tensors import is_among
from learn2pd.types import GREEDY, DecodeResult, DecodeState, Sampling, Step

log = logging.getLogger(__name__)
BLOCK_LENGTH = 32


def decode(
    model: Model,
    prompts: Any,
    method: Method | None = None,
    *,
    policy: Policy | str | None = None,
    scheduler: Scheduler | str | None = None,
    cache: Cache | str | None = None,
    stop: StopRule | str | None = None,
    gen_length: int = 256,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    given: Tensor | None = None,
    allowed: Tensor | None = None,
    on_step: Callable[[Step], object] | None = None,
    observer: Observer | None = None,
    progress: Callable[[int], object] | None = None,
) -> DecodeResult:
    """Decode prompts with any method.

    Prompts are sorted by length and decoded in batches. In float32 each row comes out as if it were decoded alone.

    Args:
        model: from `load_model`.
        prompts: a list of texts (the chat template is applied), chat messages (`[{"role": ..., "content": ...}]`, system and several turns)
            or token ids (taken as they are); or what a tokenizer returns.
        method: policy, scheduler, cache and stop rule in one; or give them one by one.
        policy: a rule such as `ThresholdPolicy(0.9)`, a trained policy from `load_policy`, or a registered name such as `"threshold"`.
        scheduler: a component or a name; default blocks of 32 tokens, or of the block length that a trained policy needs.
        cache: a component or a name; default none.
        stop: a component or a name; default `EotStop()`. `NoStop()` decodes the whole canvas.
        gen_length: canvas, tokens; need not be a multiple of the block.
        batch_size: rows decoded together.
        sampling: default greedy and deterministic; `Sampling(temperature=0.2, top_p=0.95)` draws, every prompt from a seed of its own.
        seed: of those draws.
        given: [N, gen_length] long, tokens that stand in the answer from the start, -1 where the model decodes.
        allowed: [N, gen_length, A] long, ids that a position may hold, filled with -1; a position with none but -1 may hold any.
        on_step: called with every step: what was committed and revoked, with tokens and log-probabilities.
        observer: as `on_step`, for observers that ask for more of the model.
        progress: called with the number of prompts after each batch.

    Returns:
        Answers and counts in the order of the prompts.

    Raises:
        UserError: an empty prompt, prompt and canvas longer than the model allows, components that do not go together, a policy that was
            trained for another geometry or model, given tokens of another shape.
    """
    if gen_length < 1 or batch_size < 1:
        raise UserError(f"gen_length={gen_length}, batch_size={batch_size}: both must be at least 1")
    rows = prompt_list(prompts)
    method = _method(model, method, policy, scheduler, cache, stop)
    method.check(model.spec)
    ids = [encode_checked(model, prompt, number, gen_length) for number, prompt in enumerate(rows)]
    _check_fixed(model, len(ids), gen_length, given, allowed)
    watcher = observer or (CallbackObserver(on_step) if on_step else None)
    states: list[DecodeState] = []
    started, watch = time.perf_counter(), Stopwatch(model.adapter.device)
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        state = DecodeState.start(
            [ids[number] for number in numbers],
            gen_length,
            model.spec,
            index=numbers,
            seed=[(seed * 1_000_003 + number) % 2**62 for number in numbers],
            given=None if given is None else given[numbers],
            allowed=None if allowed is None else allowed[numbers],
            device=model.adapter.device,
        )
        states.append(decode_batch(model.adapter, state, method, sampling=sampling, observer=watcher, watch=watch))
        if progress:
            progress(len(numbers))
    result = _collect(model, states, gen_length, time.perf_counter() - started, watch.seconds)
    if result.failed.any():
        numbers = result.failed.nonzero()[:, 0].tolist()
        log.warning(
            "%s gave logits that are not finite: %d prompts stopped early, first prompt %d",
            model.spec.name,
            len(numbers),
            numbers[0],
        )
    return result


def provided_by(model: Model) -> Provided:
    """What a model gives to components that are built by name."""
    return {"delimiter_ids": lambda: newline_ids(model.tokenizer), "device": lambda: str(model.adapter.device)}


def _method(model: Model, method: Method | None, policy: Any, scheduler: Any, cache: Any, stop: Any) -> Method:
    """The method, or one of the parts that are given one by one.

    Raises:
        UserError: both, neither, or an unknown name.
    """
    parts = {"policy": policy, "scheduler": scheduler, "cache": cache, "stop": stop}
    given = {role: part for role, part in parts.items() if part is not None}
    if method is not None:
        if given:
            raise UserError(f"method and {', '.join(given)} are given: give a method, or its parts one by one")
        return method
    if policy is None:
        raise UserError("policy is not given: expected a policy such as ThresholdPolicy(0.9), or a method")
    provided = provided_by(model)
    return Method(
        **{role: build(role, part, {}, provided) if isinstance(part, str) else part for role, part in given.items()}
    )


def _check_fixed(model: Model, rows: int, gen_length: int, given: Tensor | None, allowed: Tensor | None) -> None:
    """Raises UserError for given tokens or allowed ids of another shape, or outside the vocabulary."""
    for name, values, shape in (("given", given, (rows, gen_length)), ("allowed", allowed, (rows, gen_length, -1))):
        if values is None:
            continue
        if values.ndim != len(shape) or values.shape[:2] != shape[:2]:
            raise UserError(
                f"{name} has the shape {tuple(values.shape)}: expected {shape} for {rows} prompts and gen_length={gen_length}"
            )
        if values.numel() and not -1 <= int(values.min()) <= int(values.max()) < model.spec.vocab_size:
            raise UserError(
                f"{name} holds ids from {int(values.min())} to {int(values.max())}: {model.spec.name} has ids 0 to {model.spec.vocab_size - 1}, "
                "and -1 stands for none"
            )


def encode_checked(model: Model, prompt: Any, number: int | str, gen_length: int) -> list[int]:
    """Ids of a prompt that fits.

    Raises:
        UserError: with the prompt's number (from 0) or name.
    """
    try:
        ids = model.encode(prompt)
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from error
    if not ids:
        raise UserError(f"prompt {number}: it has no tokens")
    if not 0 <= min(ids) <= max(ids) < model.spec.vocab_size:
        outside = next(token for token in ids if not 0 <= token < model.spec.vocab_size)
        raise UserError(
            f"prompt {number}: token id {outside}, {model.spec.name} has ids 0 to {model.spec.vocab_size - 1}"
        )
    if len(ids) + gen_length > model.spec.max_length:
        raise UserError(
            f"prompt {number}: {len(ids)} tokens and gen_length={gen_length} make {len(ids) + gen_length}, "
            f"{model.spec.name} takes at most {model.spec.max_length}: shorten the prompt or lower gen_length"
        )
    return ids


def answer_lengths(tokens: Tensor, eot_ids: tuple[int, ...]) -> Tensor:
    """[N] tokens of each row of [N, G] before its first end-of-text."""
    ended = is_among(tokens, eot_ids)
    return torch.where(ended.any(1), ended.int().argmax(1), tokens.shape[1])


def _collect(
    model: Model, states: list[DecodeState], gen_length: int, wall_s: float, seconds: Mapping[str, float]
) -> DecodeResult:
    names = ("canvas", "committed_at", "forwards", "columns", "auxiliary_forwards", "revoked", "edited", "failed")
    if states:
        order = torch.cat([state.index for state in states]).argsort().cpu()
        values = {name: torch.cat([getattr(state, name) for state in states]).cpu()[order] for name in names}
    else:
        none = torch.zeros(0, dtype=torch.long)
        values = (
            dict.fromkeys(names, none)
            | {name: none.view(0, gen_length) for name in ("canvas", "committed_at")}
            | {"failed": none > 0}
        )
    tokens = values.pop("canvas")
    lengths = answer_lengths(tokens, model.spec.eot_ids)
    texts = [
        model.tokenizer.decode(row[:length], skip_special_tokens=True)
        for row, length in zip(tokens, lengths.tolist(), strict=True)
    ]
    return DecodeResult(tokens=tokens, lengths=lengths, texts=texts, wall_s=wall_s, seconds=dict(seconds), **values)
