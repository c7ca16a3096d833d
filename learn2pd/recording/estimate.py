"""An estimate of what a recording and a comparison cost, made before any of it is spent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from learn2pd.caches.causal_block import exact_cache_for
from learn2pd.data.prompts import Prompt
from learn2pd.decoding import encode_checked
from learn2pd.loop.loop import decode_batch
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.recording.recorder import StateRecorder, oracle_tables
from learn2pd.recording.schema import state_features
from learn2pd.roles import StopRule
from learn2pd.schedulers.blocks import blocks_for
from learn2pd.types import Commit, DecodeState, Prediction

PASSES = 2  # the decode of the references and the decode of the oracle
ROW_BYTES = 160  # bytes of a row beside the columns that have a value for each position
SHARD_BYTES = 24_000  # bytes of a shard beside its rows


@dataclass(frozen=True)
class LabelCost:
    """What labels cost that are not those of the reference.

    Attributes:
        labels: the name of the labels.
        recordings: the number of recordings whose states are labelled: the oracle's and those of rounds.
        continued_by: who continues the states, in words.
        states: the most states of a prompt that are labelled, 0 for all of them; None where no state is continued.
        positions: the most positions of such a state that are checked, 0 for all of them; None where none is.
        methods: the methods that may have to continue one state, one after another.
    """

    labels: str
    recordings: int
    continued_by: str
    states: int | None = None
    positions: int | None = None
    methods: int = 1

    def forwards(self, gen_length: int) -> int:
        """Return a bound of the forwards for one prompt of one recording.

        Args:
            gen_length: length of the canvas G, in tokens.
        """
        if self.states is None:
            return gen_length  # one more decode, of the policy alone
        states = min(self.states or gen_length, gen_length)
        masks = sum(gen_length - step for step in range(states))
        if self.positions is None:
            return self.methods * masks
        each = [min(self.positions or gen_length, gen_length - step) for step in range(states)]
        return self.methods * sum((gen_length - step) * (1 + each[step]) for step in range(states))


class _OneStep(StopRule):
    """Ends every row after its first step."""

    name = "one step"
    looks_ahead = True

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: None) -> torch.Tensor:
        return torch.zeros_like(state.end)


def estimate(
    model: Model,
    prompts: Sequence[str],
    *,
    gen_length: int,
    block_length: int,
    batch_size: int,
    shard_prompts: int,
    processes: int = 1,
    labels: LabelCost | None = None,
    hidden_bytes: int = 0,
    top_bytes: int = 0,
) -> str:
    """Word the prompts, forwards, disk space and time that a recording takes.

    The forwards and the disk space are upper bounds. The time is computed from the bound of the forwards and from one
    measured forward. To measure it, the function runs two forwards with the longest prompts and times the second one; a
    forward with fewer rows or shorter prompts takes less time.

    Args:
        model: the model that would decode.
        prompts: texts of all prompts that would be recorded.
        gen_length: length of the canvas, in tokens.
        block_length: length of a block, in tokens.
        batch_size: rows that are decoded together.
        shard_prompts: prompts in each shard.
        processes: number of processes that will share the work.
        labels: what the labels cost; None where they are those of the reference.
        hidden_bytes: bytes of the hidden states of a state; 0 where none are kept.
        top_bytes: bytes of the most probable tokens of a state; 0 where none are kept.

    Returns:
        Several lines of text for the terminal.

    Raises:
        UserError: the model cannot take one of the prompts.
    """
    forward_s = _forward_s(model, prompts, min(batch_size, shard_prompts), gen_length, block_length)
    sizes = [min(shard_prompts, len(prompts) - first) for first in range(0, len(prompts), shard_prompts)]
    batches = sum(-(-size // batch_size) for size in sizes)
    calls = PASSES * gen_length * batches
    forwards = PASSES * gen_length * len(prompts)
    states = gen_length * len(prompts)
    disk = _size(disk_bytes(prompts, len(sizes), gen_length) + states * (hidden_bytes + top_bytes))
    duration = _duration(calls * forward_s / processes)
    return "\n".join(
        (
            f"prompts:  {len(prompts)}, in {len(sizes)} shards",
            f"forwards: at most {forwards:,} ({PASSES} passes of at most {gen_length} a prompt), "
            f"in at most {calls:,} calls of {batch_size} rows",
            f"disk:     at most {disk} ({states:,} states of {gen_length} positions)",
            f"time:     at most about {duration} in {processes} process{'es' if processes > 1 else ''} "
            f"({forward_s:.3g} s a call on {model.adapter.device}, measured with the longest prompts)",
            "Answers that end early, and an oracle that commits many tokens a step, make it a small part of that.",
            *((_hidden_line(hidden_bytes * gen_length),) if hidden_bytes else ()),
            *(() if labels is None else (_label_line(labels, len(prompts), gen_length, forward_s / batch_size),)),
        )
    )


def estimate_comparison(
    model: Model,
    groups: Sequence[Sequence[str]],
    *,
    gen_length: int,
    block_length: int,
    batch_size: int,
    methods: int,
    stops: int,
    uncounted: int = 0,
) -> str:
    """Word the forwards and the time that a comparison takes. Both are upper bounds, as for `estimate`.

    Args:
        model: the model that would decode.
        groups: texts of the prompts of each task, which are decoded task by task.
        gen_length: length of the canvas, in tokens.
        block_length: length of a block, in tokens.
        batch_size: rows that are decoded together.
        methods: methods of the dLLM, each value of a sweep counted.
        stops: stop rules, with each of which every method decodes.
        uncounted: methods of autoregressive models, whose forwards are not counted.

    Returns:
        Several lines of text for the terminal.

    Raises:
        UserError: the model cannot take one of the prompts.
    """
    prompts = [prompt for group in groups for prompt in group]
    forward_s = _forward_s(model, prompts, min(batch_size, max(map(len, groups))), gen_length, block_length)
    decodes = methods * stops
    calls = decodes * gen_length * sum(-(-len(group) // batch_size) for group in groups)
    left_out = f" ({uncounted} autoregressive ones are not counted)" if uncounted else ""
    each = f"{methods} methods{left_out} with {stops} stop rule{'s' if stops > 1 else ''}"
    return "\n".join(
        (
            f"compare:  {len(prompts)} test prompts, {each}",
            f"forwards: at most {decodes * gen_length * len(prompts):,} ({gen_length} a prompt, method and stop "
            f"rule), in at most {calls:,} calls of {batch_size} rows",
            f"time:     at most about {_duration(calls * forward_s)} ({forward_s:.3g} s a call on "
            f"{model.adapter.device}, measured with the longest prompts)",
            "Methods that commit several tokens a step take a small part of that; those that take back may take more.",
        )
    )


def _hidden_line(count: int) -> str:
    return f"hidden:   at most {_size(count)} of the disk for the hidden states of each prompt, in float16"


def _label_line(labels: LabelCost, prompts: int, gen_length: int, row_s: float) -> str:
    """Word what labels cost. A continuation fills its batches, so that a row takes its share of a call."""
    forwards = labels.recordings * prompts * labels.forwards(gen_length)
    parts = [] if labels.states is None else [f"{labels.states or 'all'} states of a prompt"]
    parts += [] if labels.positions is None else [f"{labels.positions or 'all'} positions of each"]
    drawn = f" ({', '.join(parts)})" if parts else ""
    return (
        f"labels:   {labels.labels}: at most {forwards:,} more forwards, at most about "
        f"{_duration(forwards * row_s)} of one process, in {labels.recordings} "
        f"recording{'s' if labels.recordings > 1 else ''}{drawn}, continued by {labels.continued_by}"
    )


@dataclass(frozen=True)
class Plan:
    """What a recording is expected to take, from a sample of its prompts.

    Attributes:
        sample: the prompts that were recorded for it.
        forwards: forwards of all prompts, both passes.
        disk_bytes: size of all tables.
        work_s: seconds of one device for all prompts.
        elapsed_s: seconds until the last device is done, where no device is lost and all are equally fast.
        devices: the devices that share the shards.
    """

    sample: int
    forwards: float
    disk_bytes: float
    work_s: float
    elapsed_s: float
    devices: int

    def cost(self, price_per_hour: float) -> float:
        """Return the price of all devices until the last one is done.

        Args:
            price_per_hour: the price of one device for an hour.
        """
        return self.devices * self.elapsed_s / 3600 * price_per_hour

    def words(self, price_per_hour: float) -> str:
        """Word the plan in one line for the terminal.

        Args:
            price_per_hour: the price of one device for an hour; 0 names no cost.
        """
        cost = f", cost {self.cost(price_per_hour):,.2f} at {price_per_hour:g} an hour" if price_per_hour else ""
        return (
            f"expected: {self.forwards:,.0f} forwards, {_size(self.disk_bytes)}, {_duration(self.elapsed_s)} on "
            f"{self.devices} device{'s' if self.devices > 1 else ''} ({_duration(self.work_s)} of one){cost}; "
            f"from {self.sample} prompts that were recorded here"
        )


def plan(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    gen_length: int,
    block_length: int,
    batch_size: int,
    shard_prompts: int,
    delimiter_ids: Sequence[int],
    sample: int,
    devices: int = 1,
) -> Plan:
    """Record some of the prompts into memory, and compute what all of them take.

    The sample is spread evenly over the prompts and decoded in batches as a recording decodes them. The time is that of
    this machine's device, which is taken for each of the devices.

    Args:
        model: the model that decodes.
        prompts: all prompts that would be recorded.
        gen_length: length of the canvas, in tokens.
        block_length: length of a block, in tokens.
        batch_size: rows that are decoded together.
        shard_prompts: prompts in each shard.
        delimiter_ids: tokens that end a line.
        sample: prompts that are recorded for the plan.
        devices: the devices that will share the shards.
    """
    count = min(sample, len(prompts))
    some = [prompts[number * len(prompts) // count] for number in range(count)]
    forwards = states = 0
    began = time.perf_counter()
    for first in range(0, len(some), shard_prompts):
        tables = oracle_tables(
            model,
            some[first : first + shard_prompts],
            gen_length=gen_length,
            block_length=block_length,
            batch_size=batch_size,
            delimiter_ids=delimiter_ids,
        )
        counted = (torch.as_tensor(tables.references[name]).sum() for name in ("forwards", "oracle_forwards"))
        forwards += int(sum(counted))
        states += len(tables.states["prompt_id"])
    each_s = (time.perf_counter() - began) / len(some)
    shards = -(-len(prompts) // shard_prompts)
    return Plan(
        sample=len(some),
        forwards=forwards / len(some) * len(prompts),
        disk_bytes=_disk(states / len(some) * len(prompts), [prompt.text for prompt in prompts], shards, gen_length),
        work_s=each_s * len(prompts),
        # a device makes whole shards
        elapsed_s=each_s * min(-(-shards // devices) * shard_prompts, len(prompts)),
        devices=devices,
    )


def _forward_s(model: Model, prompts: Sequence[str], rows: int, gen_length: int, block_length: int) -> float:
    """Measure the seconds of one forward with the longest prompts, as many as `rows`. All prompts are checked."""
    ids = sorted((encode_checked(model, prompt, number, gen_length) for number, prompt in enumerate(prompts)), key=len)
    longest = ids[-rows:]
    seconds = 0.0
    method = Method(FixedPolicy(), blocks_for(model.spec, block_length), exact_cache_for(model.spec), _OneStep())
    for _ in range(2):
        state = DecodeState.start(longest, gen_length, model.spec, device=model.adapter.device)
        recorder = StateRecorder(torch.zeros(len(longest), gen_length, dtype=torch.long), model.spec.eot_ids, ())
        started = time.perf_counter()
        decode_batch(model.adapter, state, method, observer=recorder)
        seconds = time.perf_counter() - started
    return seconds


def disk_bytes(prompts: Sequence[str], shards: int, gen_length: int) -> float:
    """Compute an upper bound of the size of all tables, in bytes.

    The bound assumes that every pass takes as many steps as the canvas has positions. It leaves room for names and for
    the bytes that Arrow adds.

    Args:
        prompts: texts of all prompts that would be recorded.
        shards: number of shards.
        gen_length: length of the canvas, in tokens.
    """
    return _disk(gen_length * len(prompts), prompts, shards, gen_length)


def _disk(rows: float, prompts: Sequence[str], shards: int, gen_length: int) -> float:
    """Return the bytes of tables with a number of states."""
    widths = {"bool": 1 / 8, "int32": 4.0, "float32": 4.0}
    position = sum(
        widths[feature.feature.dtype] for feature in state_features(1).values() if hasattr(feature, "feature")
    )
    states = rows * (position * gen_length + ROW_BYTES)
    references = sum(4 * gen_length + len(prompt.encode()) + ROW_BYTES for prompt in prompts)
    return states + references + shards * SHARD_BYTES


def _size(count: float) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _duration(seconds: float) -> str:
    for unit, least in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * least:
            return f"{seconds / least:.1f} {unit}"
    return f"{seconds:.1f} s"
