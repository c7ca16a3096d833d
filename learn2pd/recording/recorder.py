"""What is recorded: the states a decode goes through, and what was right in each of them.

The reference is the model's own output with one token a step; once it has committed an end-of-text the rest of its canvas is end-of-text.
`oracle_tables` has the states of the oracle that knows the reference, over the whole canvas, so that a policy trained on them has seen padded
blocks too; `rollout_tables` the states that a policy leads into, with the same labels. `record` writes either, shard by shard.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from learn2pd.data.prompts import Prompt, encoded
from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.files import sha256
from learn2pd.loop.observing import Observer
from learn2pd.models.loading import Model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import GuidedPolicy, OraclePolicy
from learn2pd.predictors.features import observe
from learn2pd.recording.schema import RECORDING, entry_path, read_recording
from learn2pd.recording.shard_claims import share
from learn2pd.recording.writing import Tables, write_manifest, write_shard
from learn2pd.roles import Policy, Scheduler, StopRule
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.stops.none import NoStop
from learn2pd.types import Step

Produce = Callable[[Model, Sequence[Prompt]], Tables]


class StateRecorder(Observer):
    """Keeps one row a step and open row. It belongs to one decode, whose batches it sees one after another.

    Args:
        reference: [N, G] long, the right answer of every prompt of the decode.
        eot_ids, delimiter_ids: tokens whose proposal is marked.
    """

    needs = frozenset({"margin", "entropy"})
    scores_committed = True
    looks_ahead = True

    def __init__(self, reference: Tensor, eot_ids: Sequence[int], delimiter_ids: Sequence[int]) -> None:
        self.reference = reference
        self.eot_ids = tuple(eot_ids)
        self.delimiter_ids = tuple(delimiter_ids)
        self.steps: list[dict[str, Tensor]] = []

    def observe(self, step: Step) -> None:
        state, prediction = step.state, step.prediction
        reference = self.reference[state.index.cpu()].to(state.tokens.device)
        columns = observe(state, prediction, self.eot_ids, self.delimiter_ids) | {
            "proposal": prediction.tokens.int(),
            "label": prediction.valid & (prediction.tokens == reference),
            "start": state.window.start.int(),
            "stop": state.window.stop.int(),
            "step": state.forwards.int() - 1,
            "index": state.index,
        }
        rows = state.open
        self.steps.append({name: values[rows].cpu() for name, values in columns.items()})

    def columns(self) -> dict[str, Tensor]:
        """All rows by column, ordered by prompt and step; `index` is the prompt's number."""
        joined = {name: torch.cat([step.pop(name) for step in self.steps]) for name in list(self.steps[0])}
        order = (joined["index"] * (int(joined["step"].max()) + 1) + joined["step"]).argsort()
        return {name: values[order] for name, values in joined.items()}


def oracle_tables(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    gen_length: int,
    block_length: int,
    batch_size: int,
    delimiter_ids: Sequence[int],
) -> Tables:
    """One token a step for the references, then the oracle, in blocks."""
    run = functools.partial(
        decode,
        model,
        encoded(model, prompts),
        scheduler=BlocksScheduler(block_length),
        gen_length=gen_length,
        batch_size=batch_size,
    )
    reference = run(policy=FixedPolicy(), stop=EotStop(0.0))
    recorder = StateRecorder(reference.tokens, model.spec.eot_ids, delimiter_ids)
    oracle = run(policy=OraclePolicy(reference.tokens), stop=NoStop(), observer=recorder)
    return _tables(prompts, recorder, reference.tokens, reference.lengths, reference.forwards, oracle.forwards)


def rollout_tables(
    model: Model,
    prompts: Sequence[Prompt],
    references: Dataset,
    policy: Policy,
    scheduler: Scheduler,
    *,
    batch_size: int,
    delimiter_ids: Sequence[int],
    stop: StopRule | None = None,
) -> Tables:
    """The states that a policy meets, its errors corrected, labelled with references that were recorded before.

    Args:
        references: of exactly these prompts (`Recording.references_of`); repeated in the tables, with this decode's `oracle_forwards`.
        stop: default `EotStop()`.
    """
    known = references.with_format("torch")
    tokens, length, forwards = (torch.as_tensor(known[name][:]) for name in ("tokens", "length", "forwards"))
    recorder = StateRecorder(tokens, model.spec.eot_ids, delimiter_ids)
    decoded = decode(
        model, encoded(model, prompts), policy=GuidedPolicy(policy, tokens), scheduler=scheduler, stop=stop or EotStop(),
        gen_length=tokens.shape[1], batch_size=batch_size, observer=recorder,
    )  # fmt: skip
    return _tables(prompts, recorder, tokens, length, forwards, decoded.forwards)


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
    model: Model, prompts: Sequence[Prompt], folder: Path, produce: Produce, *, shard_prompts: int, leads: bool = True
) -> dict[str, float]:
    """Record every shard that is not there yet, or is damaged. Any number of processes may do so at once; the result is always the same.

    Args:
        prompts: all of them, in every process.
        folder: opened by `open_recording`.
        produce: makes the tables of one shard's prompts, and depends on nothing but them.
        shard_prompts: prompts a shard; an interruption costs at most one shard a process.
        leads: True in the process that checks the shards that are there, writes the manifest, and goes on when all is done. The others
            return as soon as nothing is left for them to do.

    Returns:
        Prompts that were missing, seconds.

    Raises:
        UserError: the disk is full, or the process that started this one is gone; what was recorded stays.
    """
    chunks = [range(first, min(first + shard_prompts, len(prompts))) for first in range(0, len(prompts), shard_prompts)]
    written = {number for number in range(len(chunks)) if entry_path(folder, number).exists()}
    gen_length, recording = int(read_recording(folder)["gen_length"]), sha256(folder / RECORDING)
    parent, started, missing = os.getppid(), time.perf_counter(), 0

    def make(number: int) -> None:
        if not leads and os.getppid() != parent:
            raise UserError(
                f"{folder}: the process that started this one is gone; what is recorded is kept, start again to go on"
            )
        written.discard(number)
        shard = [prompts[place] for place in chunks[number]]
        write_shard(folder, number, produce(model, shard), gen_length, recording)

    with tqdm(total=len(prompts), desc="record", unit="prompt", dynamic_ncols=True, disable=not leads) as bar:
        for number in share(folder, len(chunks), make, frozenset(written) if leads else frozenset()):
            missing += 0 if number in written else len(chunks[number])
            bar.update(len(chunks[number]))
    if leads:
        write_manifest(folder, len(chunks))
        for left in folder.glob("*.partial"):  # by processes that were lost
            left.unlink(missing_ok=True)
    return {"prompts_recorded_now": float(missing), "seconds": time.perf_counter() - started}
