"""Recording of the states that a decode goes through, together with the right answer in each of them.

The reference of a prompt is the model's own output with one token a step. When the model has committed an end-of-text,
the rest of the reference's canvas is filled with end-of-text.

`oracle_tables` returns the states of an oracle that knows the reference. They cover the whole canvas, so a policy that
is trained on them has seen padded blocks too. `rollout_tables` returns the states that a policy leads into, with the
same labels. `free_tables` returns the states of a policy that nobody corrects, in which mistakes stand; their labels
come from the answer that is right for the prompt. `record` writes tables of any kind, one shard after another.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from learn2pd.caches.causal_block import exact_cache_for
from learn2pd.data.prompts import Prompt, encoded
from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.files import sha256
from learn2pd.loop.observing import Observer
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import GuidedPolicy, OraclePolicy
from learn2pd.predictors.features import STANDING, observe, observe_committed
from learn2pd.predictors.hidden import NEEDED, TOP_NEEDED, in_window, top_in_window
from learn2pd.progress import progress_bar
from learn2pd.recording.exchange import Exchange
from learn2pd.recording.schema import RECORDING, entry_path, read_recording
from learn2pd.recording.shard_claims import share
from learn2pd.recording.writing import Tables, write_manifest, write_shard
from learn2pd.schedulers.blocks import blocks_for
from learn2pd.stops.eot import EotStop
from learn2pd.stops.none import NoStop
from learn2pd.tensors import window_view
from learn2pd.types import DecodeResult, Step

Produce = Callable[[Model, Sequence[Prompt]], Tables]
Judge = Callable[[Sequence[Prompt], Sequence[str]], Sequence[bool]]  # says which answers of prompts are right


@dataclass(frozen=True)
class WindowValues:
    """What is kept of the windows beside one value for each position.

    Attributes:
        block_length: W, the positions of a window.
        projection: [D, K] float32, the map of hidden states to numbers; None keeps no hidden states.
        top: True keeps the most probable tokens.
    """

    block_length: int
    projection: Tensor | None = None
    top: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """The extras of the prediction that are kept."""
        asked = ((NEEDED, self.projection is not None), (TOP_NEEDED, self.top))
        return frozenset(name for name, wanted in asked if wanted)

    def of(self, step: Step) -> dict[str, Tensor]:
        """Return the columns of a step, [B, W * K] each, 0 at positions that are not masked."""
        window = step.state.window
        values: dict[str, Tensor] = {}
        if self.projection is not None:
            projection = self.projection.to(step.state.tokens.device)
            values["hidden"] = in_window(projection, step.prediction, window, self.block_length).half()
        if self.top:
            ids, shares = top_in_window(step.prediction, window, self.block_length)
            values |= {"top_ids": ids.int(), "top_shares": shares.half()}
        masked = window_view(step.state.masked, window, self.block_length)[..., None]
        return {name: (several * masked).flatten(1) for name, several in values.items()}


class StateRecorder(Observer):
    """Keeps a row for each step and each row of the batch that is still open.

    A recorder belongs to one decode, and observes the batches of that decode one after another.

    Args:
        reference: [N, G] long, the right answer of every prompt of the decode.
        eot_ids: end-of-text tokens; a proposal that is one of them is marked.
        delimiter_ids: tokens that end a line; a proposal that is one of them is marked.
        windows: what else is kept of the windows; None keeps nothing.
    """

    needs = frozenset({"margin", "entropy"})
    scores_committed = True
    looks_ahead = True

    def __init__(
        self,
        reference: Tensor,
        eot_ids: Sequence[int],
        delimiter_ids: Sequence[int],
        windows: WindowValues | None = None,
    ) -> None:
        self.reference = reference
        self.windows = windows
        if windows is not None:
            self.needs = self.needs | windows.needs
        self.eot_ids = tuple(eot_ids)
        self.delimiter_ids = tuple(delimiter_ids)
        self.steps: list[dict[str, Tensor]] = []

    def observe(self, step: Step) -> None:
        """Keep the state and the proposals of one step."""
        rows = step.state.open
        self.steps.append({name: values[rows].cpu() for name, values in self.described(step).items()})

    def described(self, step: Step) -> dict[str, Tensor]:
        """Return the columns of one step, a row for each row of the batch."""
        state = step.state
        prediction = step.prediction
        reference = self.reference[state.index.cpu()].to(state.tokens.device)
        columns = observe(state, prediction, self.eot_ids, self.delimiter_ids)
        if self.windows is not None:
            columns |= self.windows.of(step)
        return columns | {
            "proposal": prediction.tokens.int(),
            "label": prediction.valid & (prediction.tokens == reference),
            "start": state.window.start.int(),
            "stop": state.window.stop.int(),
            "step": state.forwards.int() - 1,
            "index": state.index,
        }

    def columns(self) -> dict[str, Tensor]:
        """Return all rows by column and release them.

        Returns:
            The columns by their names, ordered by prompt and step. The column `index` is the number of the prompt in
            the decode.
        """
        joined = {name: torch.cat([step.pop(name) for step in self.steps]) for name in list(self.steps[0])}
        order = (joined["index"] * (int(joined["step"].max()) + 1) + joined["step"]).argsort()
        return {name: values[order] for name, values in joined.items()}


class CommittedRecorder(StateRecorder):
    """Also keeps how the committed tokens of the window stand."""

    needs = StateRecorder.needs | frozenset(STANDING)

    def described(self, step: Step) -> dict[str, Tensor]:
        columns = observe_committed(step.state, step.prediction)
        whole = {name: columns[name].int() for name in ("token", "leave_one_out_rank", "age")}
        return super().described(step) | columns | whole


def oracle_tables(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    gen_length: int,
    block_length: int,
    batch_size: int,
    delimiter_ids: Sequence[int],
    given: Sequence[Any] | None = None,
    windows: WindowValues | None = None,
) -> Tables:
    """Decode the references with one token a step, and then record the oracle's states, in blocks.

    Args:
        model: the model that decodes.
        prompts: the prompts of one shard.
        gen_length: length of the canvas, in tokens.
        block_length: length of a block, in tokens.
        batch_size: rows that are decoded together.
        delimiter_ids: tokens that end a line.
        given: the parts of every answer that stand from the start, as for `decode`.
        windows: what else is kept of the windows; None keeps nothing.

    Returns:
        The tables of the shard.
    """
    run = _decoder(model, prompts, gen_length, batch_size, given)
    blocks = blocks_for(model.spec, block_length)
    cache = exact_cache_for(model.spec)
    reference = run(Method(FixedPolicy(), blocks, cache, EotStop(0.0)))
    recorder = StateRecorder(reference.tokens, model.spec.eot_ids, delimiter_ids, windows)
    oracle = run(Method(OraclePolicy(reference.tokens), blocks, cache, NoStop()), observer=recorder)
    return _tables(prompts, recorder, reference.tokens, reference.lengths, reference.forwards, oracle.forwards)


def rollout_tables(
    model: Model,
    prompts: Sequence[Prompt],
    references: Dataset,
    method: Method,
    *,
    batch_size: int,
    delimiter_ids: Sequence[int],
    given: Sequence[Any] | None = None,
    judge: Judge | None = None,
    windows: WindowValues | None = None,
) -> Tables:
    """Record the states that a policy meets while its errors are corrected.

    The states are labelled with references that were recorded before. With a judge, the policy first decodes by itself,
    and where its own answer is right, this answer takes the place of the reference. No token of such an answer is an
    error, however the answer is worded.

    Args:
        model: the model that decodes.
        prompts: the prompts of one shard.
        references: the rows of exactly these prompts (`Recording.references_of`). The tables repeat them, with the
            forwards of this decode as `oracle_forwards`.
        method: the method whose policy meets the states.
        batch_size: rows that are decoded together.
        delimiter_ids: tokens that end a line.
        given: the parts of every answer that stand from the start, as for `decode`.
        judge: says which answers are right; None takes the references for all prompts.
        windows: what else is kept of the windows; None keeps nothing.

    Returns:
        The tables of the shard.
    """
    tokens, length, forwards = _known(references)
    run = _decoder(model, prompts, tokens.shape[1], batch_size, given)
    if judge is not None:
        tokens, length = _right_answers(run(method), judge, prompts, tokens, length)
    recorder = StateRecorder(tokens, model.spec.eot_ids, delimiter_ids, windows)
    guided = dataclasses.replace(method, policy=GuidedPolicy(method.policy, tokens))
    decoded = run(guided, observer=recorder)
    return _tables(prompts, recorder, tokens, length, forwards, decoded.forwards)


def free_tables(
    model: Model,
    prompts: Sequence[Prompt],
    references: Dataset,
    method: Method,
    judge: Judge,
    *,
    batch_size: int,
    delimiter_ids: Sequence[int],
    given: Sequence[Any] | None = None,
) -> Tables:
    """Record the states that a policy leads into when nobody corrects it, and how its committed tokens stand there.

    The labels come from the answer that is right for the prompt. This is the answer that the policy arrives at, where
    it is right, and the recorded reference elsewhere. A wording that led to a right answer is therefore no mistake.

    Args:
        model: the model that decodes.
        prompts: the prompts of one shard.
        references: the rows of exactly these prompts (`Recording.references_of`). The tables repeat them with the
            answers that the labels come from, and with the forwards of this decode as `oracle_forwards`.
        method: the method whose policy meets the states.
        judge: says which answers are right.
        batch_size: rows that are decoded together.
        delimiter_ids: tokens that end a line.
        given: the parts of every answer that stand from the start, as for `decode`.

    Returns:
        The tables of the shard.
    """
    tokens, length, forwards = _known(references)
    recorder = CommittedRecorder(tokens, model.spec.eot_ids, delimiter_ids)
    decoded = _decoder(model, prompts, tokens.shape[1], batch_size, given)(method, observer=recorder)
    accepted, length = _right_answers(decoded, judge, prompts, tokens, length)
    tables = _tables(prompts, recorder, accepted, length, forwards, decoded.forwards)
    owner = {prompt.id: number for number, prompt in enumerate(prompts)}
    answer = accepted[torch.tensor([owner[str(name)] for name in tables.states["prompt_id"]])]
    confidence, proposal, token, age = (
        torch.as_tensor(tables.states[name]) for name in ("confidence", "proposal", "token", "age")
    )
    labels = {"label": (confidence > 0) & (proposal == answer), "holds": (age > 0) & (token == answer)}
    return Tables({**tables.states, **labels}, tables.references)


def _known(references: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Return the recorded answers [N, G], their lengths [N] and the forwards that they took [N]."""
    known = references.with_format("torch")
    tokens, length, forwards = (torch.as_tensor(known[name][:]) for name in ("tokens", "length", "forwards"))
    return tokens, length, forwards


def _decoder(
    model: Model, prompts: Sequence[Prompt], gen_length: int, batch_size: int, given: Sequence[Any] | None
) -> Callable[..., DecodeResult]:
    """Return `decode` for the prompts of a shard, which takes the method and an observer."""
    return functools.partial(
        decode,
        model,
        encoded(model, prompts),
        gen_length=gen_length,
        batch_size=batch_size,
        given=None if given is None else [given] * len(prompts),
    )


def _right_answers(
    decoded: DecodeResult, judge: Judge, prompts: Sequence[Prompt], tokens: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the answers [N, G] and their lengths [N]: the decoded one where it is right, else the reference."""
    right = torch.tensor(judge(prompts, decoded.texts), dtype=torch.bool)
    return (
        torch.where(right[:, None], decoded.tokens.to(tokens.dtype), tokens),
        torch.where(right, decoded.lengths.to(length.dtype), length),
    )


def _tables(
    prompts: Sequence[Prompt], recorder: StateRecorder, tokens: Tensor, length: Tensor, forwards: Tensor, oracle: Tensor
) -> Tables:
    states = recorder.columns()
    index = states.pop("index").tolist()
    return Tables(
        states | {"prompt_id": [prompts[i].id for i in index], "split": [prompts[i].split for i in index]},
        {
            "prompt_id": [prompt.id for prompt in prompts],
            "split": [prompt.split for prompt in prompts],
            "prompt": [prompt.text for prompt in prompts],
            "tokens": tokens,
            "length": length,
            "forwards": forwards,
            "oracle_forwards": oracle,
        },
    )


def record(
    model: Model,
    prompts: Sequence[Prompt],
    folder: Path,
    produce: Produce,
    *,
    shard_prompts: int,
    leads: bool = True,
    exchange: Exchange | None = None,
) -> dict[str, float]:
    """Record every shard that is missing or damaged.

    Any number of processes may call this function at the same time, with the same folder or with one exchange; the
    resulting files are always the same.

    Args:
        model: the model that decodes.
        prompts: all prompts of the recording, the same ones in every process.
        folder: the folder of the recording, which `open_recording` has prepared.
        produce: makes the tables of one shard from its prompts, and depends on nothing but them.
        shard_prompts: prompts in each shard. An interruption costs each process at most one shard.
        leads: True in one process, False in the others. The leading process checks the shards that exist and writes the
            manifest, and returns when the recording is complete. The other processes return as soon as no shard is left
            for them.
        exchange: the place through which processes with different folders share the shards.

    Returns:
        `prompts_recorded_now`, the number of prompts whose shards were missing or damaged, and `seconds`, the time it
        took.

    Raises:
        UserError: the disk is full, or the process that started this one has ended. The shards that were recorded stay.
    """
    chunks = [range(first, min(first + shard_prompts, len(prompts))) for first in range(0, len(prompts), shard_prompts)]
    written = {number for number in range(len(chunks)) if entry_path(folder, number).exists()}
    gen_length = int(read_recording(folder)["gen_length"])
    recording = sha256(folder / RECORDING)
    parent = os.getppid()
    started = time.perf_counter()
    missing = 0

    def make(number: int) -> None:
        if not leads and os.getppid() != parent:
            raise UserError(
                f"{folder}: the process that started this one is gone; "
                "the shards that are recorded are kept, start again to go on"
            )
        written.discard(number)
        shard = [prompts[place] for place in chunks[number]]
        write_shard(folder, number, produce(model, shard), gen_length, recording)

    with progress_bar(len(prompts), f"record {folder.name}", "prompt", shown=leads) as bar:
        check = frozenset(written) if leads or exchange else frozenset()
        for number in (exchange.share if exchange else share)(folder, len(chunks), make, check):
            if number not in written:
                missing += len(chunks[number])
            bar.update(len(chunks[number]))
    if leads:
        write_manifest(folder, len(chunks))
        # lost processes left files half written, and locks of shards that are done
        for left in (*folder.glob("*.partial"), *folder.glob("shard-*.lock")):
            left.unlink(missing_ok=True)
    return {"prompts_recorded_now": float(missing), "seconds": time.perf_counter() - started}
