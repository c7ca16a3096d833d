"""`decode`: texts in, texts out, in batches. The loop itself is in loop.py and knows neither texts nor batches of batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from learn2pd.caches.none import NoCache
from learn2pd.errors import UserError
from learn2pd.loop.loop import Recorder, decode_batch
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.loading import Model
from learn2pd.roles import Cache, Policy, Scheduler, StopRule
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.tensors import is_among
from learn2pd.types import GREEDY, DecodeResult, DecodeState, Sampling

log = logging.getLogger(__name__)


def decode(
    model: Model,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    policy: Policy,
    scheduler: Scheduler | None = None,
    cache: Cache | None = None,
    stop: StopRule | None = None,
    gen_length: int = 256,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    recorder: Recorder | None = None,
    progress: Callable[[int], object] | None = None,
) -> DecodeResult:
    """Decode prompts with any policy.

    Prompts are sorted by length and decoded in batches; each row comes out as if it were decoded alone.

    Args:
        model: from `load_model`.
        prompts: texts (the chat template is applied) or token ids (taken as they are).
        policy: a rule such as `ThresholdPolicy(0.9)` or a trained one from `load_policy`.
        scheduler: default `BlocksScheduler(32)`, or the block length a trained policy needs.
        cache: default `NoCache()`.
        stop: default `EotStop()`; `NoStop()` decodes the whole canvas.
        gen_length: canvas, tokens; need not be a multiple of the block.
        batch_size: rows decoded together.
        sampling: default greedy and deterministic; `Sampling(temperature=0.2, top_p=0.95)` draws, every prompt from its own generator.
        seed: of those generators.
        recorder: watches every step.
        progress: called with the number of prompts after each batch.

    Raises:
        UserError: empty prompt, prompt and canvas longer than the model allows, components that do not go together, policy trained for
            another geometry or model.
    """
    if gen_length < 1 or batch_size < 1:
        raise UserError(f"gen_length={gen_length}, batch_size={batch_size}: both must be at least 1")
    if isinstance(prompts, str):
        raise UserError("prompts is one text: expected a list of them, such as [text]")
    scheduler, cache, stop = scheduler or BlocksScheduler(policy.window_width or 32), cache or NoCache(), stop or EotStop()
    check_fit(model, policy, scheduler, cache, stop)
    ids = [encode_checked(model, cast(str | Sequence[int], prompt), number, gen_length) for number, prompt in enumerate(prompts)]
    states: list[DecodeState] = []
    started, watch = time.perf_counter(), Stopwatch(model.adapter.device)
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        spec = model.spec
        state = DecodeState.start([ids[number] for number in numbers], numbers, gen_length, spec.mask_id, spec.pad_id, model.adapter.device)
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in numbers]
        states.append(decode_batch(
            model.adapter, state, scheduler=scheduler, policy=policy, cache=cache, stop=stop,
            sampling=sampling, generators=generators, recorder=recorder, watch=watch,
        ))  # fmt: skip
        if progress:
            progress(len(numbers))
    result = _collect(model, states, gen_length, time.perf_counter() - started, watch.seconds)
    if result.failed.any():
        numbers = result.failed.nonzero()[:, 0].tolist()
        log.warning("%s gave logits that are not finite: %d prompts stopped early, first prompt %d", model.spec.name, len(numbers), numbers[0])
    return result


def check_fit(model: Model, policy: Policy, scheduler: Scheduler, cache: Cache, stop: StopRule) -> None:
    """Refuse components that do not go together.

    Raises:
        UserError: naming both sides.
    """
    scheduler.check_model(model.spec)
    if scheduler.slides and not cache.slides:
        raise UserError(
            f"cache {cache.name!r} is refilled when a block opens, scheduler {scheduler.name!r} moves its window at every step: "
            "use cache none or dsb, or scheduler blocks or adablock"
        )
    leaks, expected = getattr(scheduler, "leak", 0), getattr(cache, "leak", 0)
    if leaks != expected:
        raise UserError(f"scheduler {scheduler.name!r} has leak={leaks}, cache {cache.name!r} needs leak={expected}: give the scheduler this leak")
    check_model = getattr(policy, "check_model", None)
    if check_model is not None:
        check_model(model)
    for component in (policy, scheduler, stop):
        contract = getattr(component, "contract", None)
        if contract is not None:
            contract.check(model.spec, scheduler.block_length, scheduler.alignment)
    if policy.window_width is not None and (policy.window_width, "prompt") != (scheduler.block_length, scheduler.alignment):
        raise UserError(
            f"policy {policy.name!r} works on blocks of {policy.window_width} tokens, "
            f"scheduler {scheduler.name!r} opens {scheduler.alignment} windows of {scheduler.block_length}"
        )


def encode_checked(model: Model, prompt: str | Sequence[int], number: int | str, gen_length: int) -> list[int]:
    """Ids of a prompt that fits.

    Raises:
        UserError: with the prompt's number (from 0) or name.
    """
    try:
        ids = model.encode(prompt) if isinstance(prompt, str) else list(prompt)
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from error
    if not ids:
        raise UserError(f"prompt {number}: it has no tokens")
    if not 0 <= min(ids) <= max(ids) < model.spec.vocab_size:
        wrong = next(token for token in ids if not 0 <= token < model.spec.vocab_size)
        raise UserError(f"prompt {number}: token id {wrong}, {model.spec.name} has ids 0 to {model.spec.vocab_size - 1}")
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


def _collect(model: Model, states: list[DecodeState], gen_length: int, wall_s: float, seconds: Mapping[str, float]) -> DecodeResult:
    if not states:
        empty = torch.zeros(0, dtype=torch.long)
        return DecodeResult(empty.view(0, gen_length), empty, empty.view(0, gen_length), empty, empty, empty > 0, [], wall_s, seconds)
    order = torch.cat([state.index for state in states]).argsort().cpu()
    names = ("canvas", "committed_at", "forwards", "auxiliary_forwards", "failed")
    tokens, committed_at, forwards, auxiliary, failed = (torch.cat([getattr(state, name) for state in states]).cpu()[order] for name in names)
    lengths = answer_lengths(tokens, model.spec.eot_ids)
    texts = [model.tokenizer.decode(row[:length], skip_special_tokens=True) for row, length in zip(tokens, lengths.tolist(), strict=True)]
    return DecodeResult(tokens, lengths, committed_at, forwards, auxiliary, failed, texts, wall_s, dict(seconds))
