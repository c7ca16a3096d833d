"""`decode` turns prompts into answers, batch by batch. loop/loop.py decodes one batch and knows no texts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.errors import UserError
from learn2pd.loop.loop import decode_batch
from learn2pd.loop.observing import CallbackObserver, Observer
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.method import Method
from learn2pd.models.delimiters import newline_ids
from learn2pd.models.infilling import given_tokens
from learn2pd.models.loading import Model
from learn2pd.models.prompts import prompt_list
from learn2pd.registry import Provided, build
from learn2pd.roles import Cache, Policy, Scheduler, StopRule
from learn2pd.schedulers.blocks import alignment_of, blocks_for
from learn2pd.stops.text import TextStop
from learn2pd.tensors import is_among
from learn2pd.types import GREEDY, DecodeResult, DecodeState, Sampling, Step, row_seeds

log = logging.getLogger(__name__)
BLOCK_LENGTH = 32  # tokens of a block where neither the model nor the user says otherwise
GEN_LENGTH = 256


@checked(
    but=("prompts", "stop_strings", "given", "allowed"),
    advice={"model": "; load_model loads one", "method": "; give a policy, or its name, as policy=..."},
)
def decode(
    model: Model,
    prompts: Any,
    method: Method | None = None,
    *,
    policy: Policy | str | None = None,
    scheduler: Scheduler | str | None = None,
    cache: Cache | str | None = None,
    stop: StopRule | str | None = None,
    stop_strings: str | list[str] | None = None,
    gen_length: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    batch_invariant: bool = False,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    given: Tensor | Sequence[Sequence[str | int | None] | None] | None = None,
    allowed: Tensor | None = None,
    on_step: Callable[[Step], object] | None = None,
    observer: Observer | None = None,
    progress: Callable[[int], object] | None = None,
) -> DecodeResult:
    """Decode prompts with any method.

    The prompts are sorted by length and decoded in batches. In float32 every prompt gives the same answer as if it were
    decoded alone. In bfloat16 and float16 a batch rounds otherwise than one row, which changes the answers of some
    prompts; `batch_invariant` prevents this.

    Args:
        model: The model, from `load_model`.
        prompts: A list of prompts, or the result of a tokenizer. A prompt is a text, to which the chat template is
            applied; chat messages (`[{"role": ..., "content": ...}]`, with a system message and several turns if
            wanted); or token ids, which are used as they are.
        method: Policy, scheduler, cache and stop rule together. Without it, the next four arguments give them one by
            one.
        policy: A rule such as `ThresholdPolicy(0.9)`, a trained policy from `load_policy`, or a registered name such as
            `"threshold"`.
        scheduler: A component or a name. The default makes blocks of 32 tokens, or of the block length that a trained
            policy needs; on a block-causal model it makes the model's own blocks.
        cache: A component or a name. The default recomputes everything.
        stop: A component or a name. The default is `EotStop()`. `NoStop()` decodes the whole canvas.
        stop_strings: Texts at which an answer ends, such as `["\\n\\n"]`. The answer's text ends before the first of
            them. This is short for `stop=TextStop(stop_strings)`.
        gen_length: The tokens of the canvas, 256 by default. The number need not be a multiple of the block length.
        max_new_tokens: The most tokens of an answer, in place of `gen_length`. The canvas then grows with the answer:
            nothing behind the open block is computed. This needs a cache that grows, and without `cache` it takes one:
            `causal_block` on a block-causal model, where the answers are those of a canvas of this length, and `grow`
            on others.
        batch_size: The number of prompts that are decoded together.
        batch_invariant: True decodes every prompt in a batch of its own, so that its answer depends on no other prompt
            in any type of weights. This is slower; docs/benchmarks.md has figures.
        sampling: The rule by which tokens are drawn. The default is greedy and deterministic.
            `Sampling(temperature=0.2, top_p=0.95)` draws, and every prompt has a seed of its own.
        seed: The number from which those seeds are made.
        given: The parts of the answers that stand from the start. For each prompt, a list of texts and of numbers of
            positions that the model fills, such as `["The capital is ", 3, "."]`. A None at its end stands for all
            positions that are left; without it the answer ends behind the last part. A None in place of a list gives
            nothing. Or a tensor [N, gen_length] long of token ids, -1 where the model decodes.
        allowed: [N, gen_length, A] long, the ids that a position may hold. Unused places hold -1. A position whose
            places all hold -1 may hold any id.
        on_step: A function that receives every step: committed and revoked positions, tokens and log-probabilities.
        observer: As `on_step`, for observers that need more proposals or extras than the method. Only one of the two
            may be given.
        progress: A function that receives the number of prompts of each finished batch.

    Returns:
        Answers and counts in the order of the prompts.

    Raises:
        UserError: A prompt is empty, prompt and canvas are longer than the model allows, components do not fit each
            other, a policy was trained for another geometry or model, or given tokens have another shape.
    """
    gen_length = _canvas_length(gen_length, max_new_tokens)
    if gen_length < 1 or batch_size < 1:
        raise UserError(f"gen_length={gen_length}, batch_size={batch_size}: both must be at least 1")
    if observer is not None and on_step is not None:
        raise UserError("observer and on_step are given: give one of them; an observer may call a function itself")
    rows = prompt_list(prompts)
    if max_new_tokens is not None and method is None and cache is None:
        cache = "grow" if model.spec.causal_block is None else "causal_block"
    method = _method(model, method, policy, scheduler, cache, _stop(method, stop, stop_strings))
    if max_new_tokens is not None and not method.cache.grows:
        raise UserError(
            f"max_new_tokens={max_new_tokens}: cache {method.cache.name!r} computes the whole canvas; use cache "
            "causal_block on a block-causal model, cache grow on another one, or gen_length in place of max_new_tokens"
        )
    method.check(model.spec)
    ids = [encode_checked(model, prompt, number, gen_length) for number, prompt in enumerate(rows)]
    fixed = given if given is None or isinstance(given, Tensor) else given_tokens(model, given, gen_length)
    _check_fixed(model, len(ids), gen_length, fixed, allowed)
    watcher = observer or (CallbackObserver(on_step) if on_step else None)
    states: list[DecodeState] = []
    watch = Stopwatch(model.adapter.device)
    started = time.perf_counter()
    for state in _batches(model, ids, gen_length, 1 if batch_invariant else batch_size, seed, fixed, allowed):
        states.append(decode_batch(model.adapter, state, method, sampling=sampling, observer=watcher, watch=watch))
        if progress:
            progress(len(state.index))
    result = _collect(model, method, states, gen_length, time.perf_counter() - started, watch.seconds)
    _warn_of_failed(model, result)
    return result


def _canvas_length(gen_length: int | None, max_new_tokens: int | None) -> int:
    """Return the number of tokens of the canvas.

    Raises:
        UserError: The caller gave both numbers, or a `max_new_tokens` below 1.
    """
    if gen_length is not None and max_new_tokens is not None:
        raise UserError(
            f"gen_length={gen_length} and max_new_tokens={max_new_tokens} are given: give gen_length for a canvas of "
            "that length, or max_new_tokens for one that grows up to it"
        )
    if max_new_tokens is None:
        return GEN_LENGTH if gen_length is None else gen_length
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: expected at least 1")
    return max_new_tokens


def _batches(
    model: Model,
    ids: Sequence[list[int]],
    gen_length: int,
    batch_size: int,
    seed: int,
    given: Tensor | None,
    allowed: Tensor | None,
) -> Iterator[DecodeState]:
    """Yield the state before the first step of each batch. Prompts of similar lengths are decoded together."""
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        yield DecodeState.start(
            [ids[number] for number in numbers],
            gen_length,
            model.spec,
            index=numbers,
            seed=row_seeds(seed, numbers),
            given=None if given is None else given[numbers],
            allowed=None if allowed is None else allowed[numbers],
            device=model.adapter.device,
        )


def _warn_of_failed(model: Model, result: DecodeResult) -> None:
    """Log how many prompts stopped early because the model gave logits that are not finite."""
    if result.failed.any():
        numbers = result.failed.nonzero()[:, 0].tolist()
        log.warning(
            "%s gave logits that are not finite: %d prompts stopped early, first prompt %d",
            model.spec.name,
            len(numbers),
            numbers[0],
        )


def provided_by(model: Model) -> Provided:
    """Return the values that a model provides to components that are built by name.

    Args:
        model: The model.

    Returns:
        A function for each value, by the name of the parameter that it fills.
    """
    return {
        "delimiter_ids": lambda: newline_ids(model.tokenizer),
        "device": lambda: str(model.adapter.device),
        "alignment": lambda: alignment_of(model.spec),
    }


def _method(model: Model, method: Method | None, policy: Any, scheduler: Any, cache: Any, stop: Any) -> Method:
    """Return the method that the caller gave, or build one of the components that the caller gave one by one.

    Raises:
        UserError: The caller gave both, or neither, or an unknown name.
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
    if scheduler is None and model.spec.causal_block is not None:
        given["scheduler"] = blocks_for(model.spec, model.spec.causal_block)
    return Method(
        **{role: build(role, part, {}, provided) if isinstance(part, str) else part for role, part in given.items()}
    )


def _stop(method: Method | None, stop: Any, strings: str | list[str] | None) -> Any:
    """Return the stop rule that the caller gave, or the one for the texts that the caller gave.

    Raises:
        UserError: The caller gave both, or the texts are none.
    """
    if strings is None:
        return stop
    if stop is not None or method is not None:
        raise UserError(
            f"stop_strings and {'stop' if method is None else 'method'} are given: "
            "give TextStop(stop_strings) as the stop rule instead"
        )
    try:
        return TextStop(strings)
    except ValueError as error:
        raise UserError(f"stop_{error}") from error


def _check_fixed(model: Model, rows: int, gen_length: int, given: Tensor | None, allowed: Tensor | None) -> None:
    """Refuse given tokens or allowed ids that have a wrong shape, are outside the vocabulary or leave the mask alone.

    Raises:
        UserError: The values do not fit; the message names the argument.
    """
    for name, values, shape in (("given", given, (rows, gen_length)), ("allowed", allowed, (rows, gen_length, -1))):
        if values is None:
            continue
        if not isinstance(values, Tensor) or values.dtype not in (torch.long, torch.int):
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise UserError(f"{name} is of type {kind}: expected a tensor of whole numbers (torch.long)")
        if values.ndim != len(shape) or values.shape[:2] != shape[:2]:
            raise UserError(
                f"{name} has the shape {tuple(values.shape)}: "
                f"expected {shape} for {rows} prompts and gen_length={gen_length}"
            )
        if values.numel() and not -1 <= int(values.min()) <= int(values.max()) < model.spec.vocab_size:
            raise UserError(
                f"{name} holds ids from {int(values.min())} to {int(values.max())}: "
                f"{model.spec.name} has ids 0 to {model.spec.vocab_size - 1}, and -1 stands for none"
            )
        places = values[..., None] if name == "given" else values
        is_mask = places == model.spec.mask_id
        stuck = is_mask.any(2) & (is_mask | (places == -1)).all(2)
        if stuck.any():
            row, position = stuck.nonzero()[0].tolist()
            raise UserError(
                f"{name} holds the mask token {model.spec.mask_id} alone at position {position} of prompt {row}: "
                "expected an id of another token, or -1 for none"
            )


def encode_checked(model: Model, prompt: Any, number: int | str, gen_length: int) -> list[int]:
    """Encode a prompt, and refuse one that does not fit the model.

    Args:
        model: The model.
        prompt: A text, chat messages or token ids.
        number: The prompt's number, counted from 0, or its name, for messages.
        gen_length: The tokens of the canvas.

    Returns:
        The token ids.

    Raises:
        UserError: The prompt cannot be encoded, is empty, has ids outside the vocabulary, or is too long.
    """
    try:
        ids = model.encode(prompt)
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from error
    if len(ids) + gen_length > model.spec.max_length:
        raise UserError(
            f"prompt {number}: {len(ids)} tokens and gen_length={gen_length} make {len(ids) + gen_length}, "
            f"{model.spec.name} takes at most {model.spec.max_length}: shorten the prompt or lower gen_length"
        )
    return ids


def answer_lengths(tokens: Tensor, eot_ids: tuple[int, ...], given: Tensor | None = None) -> Tensor:
    """Count the tokens of each row before its first end-of-text.

    An end-of-text before a token that the caller gave ends no answer: the model has left a gap shorter than it is.

    Args:
        tokens: [N, G] long.
        eot_ids: The ids that end an answer.
        given: [N, G] bool, the positions whose token the caller gave.

    Returns:
        [N] long, G for a row without an end-of-text.
    """
    ended = is_among(tokens, eot_ids)
    if given is not None:
        position = torch.arange(tokens.shape[1], device=tokens.device)
        ended = ended & (position > torch.where(given & ~ended, position, -1).amax(1, keepdim=True))
    return torch.where(ended.any(1), ended.int().argmax(1), tokens.shape[1])


def _collect(
    model: Model,
    method: Method,
    states: list[DecodeState],
    gen_length: int,
    wall_s: float,
    seconds: Mapping[str, float],
) -> DecodeResult:
    """Put the final states of all batches together, in the order of the prompts."""
    canvases = ("canvas", "given", "committed_at")
    counts = ("forwards", "columns", "auxiliary_forwards", "revoked", "edited", "flip_flops")
    names = (*canvases, *counts, "failed")
    if states:
        order = torch.cat([state.index for state in states]).argsort().cpu()
        values = {name: torch.cat([getattr(state, name) for state in states]).cpu()[order] for name in names}
    else:
        none = torch.zeros(0, dtype=torch.long)
        values = dict.fromkeys(names, none) | {name: none.view(0, gen_length) for name in canvases}
        values["failed"] = none > 0
    tokens = values.pop("canvas")
    lengths = answer_lengths(tokens, model.spec.eot_ids, values.pop("given") > 0)
    texts = [
        method.stop.final_text(model.text(row[:length])) for row, length in zip(tokens, lengths.tolist(), strict=True)
    ]
    return DecodeResult(tokens=tokens, lengths=lengths, texts=texts, wall_s=wall_s, seconds=dict(seconds), **values)
